"""One training run: python -m training.train experiment=quick model=efficientnet_lite0 trainer.epochs=2"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import rich
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from rich.syntax import Syntax

from training import tracking
from training.calibration import calibrate
from training.checkpoint import Checkpoints
from training.config import hydra_command
from training.data import AlbumentationsDataset, ImageData, build_transform, load_data
from training.errors import UserError, full_disk_in_words
from training.evaluation import confusion_figure, evaluate, predict, reliability_figure, torch_classify
from training.models import build_model
from training.settings import require_valid
from training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What is needed to train: the pictures, the trainer, and the checkpoints under the run's key."""

    data: ImageData
    trainer: Trainer
    checkpoints: Checkpoints
    key: str


def set_up(config: DictConfig) -> Run:
    """Loads the pictures and builds the model.

    Raises:
        UserError: something in the configuration or the data that the user can mend.
    """
    require_valid(config)
    with PartialState().main_process_first():
        data = load_data(config.data, config.seed)
    log.info(
        "%s: %d training, %d validation and %d test pictures of %d classes",
        *(data.name, len(data.train), len(data.validation), len(data.test), len(data.classes)),
    )
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(data.classes))
    transform = build_transform(config.transforms, data.train.common_size(), config.model.image_size)
    key = run_key(config, data)
    checkpoints = Checkpoints(Path(config.state_dir) / "runs" / key)
    train_set = AlbumentationsDataset(data.train, transform)
    trainer = Trainer(config.trainer, model, train_set, data.validation, config.seed, checkpoints)
    return Run(data, trainer, checkpoints, key)


@full_disk_in_words()
def train(config: DictConfig) -> str:
    """Trains, evaluates on the test set, and tracks all of it in MLflow.

    Returns:
        The MLflow run's id. The run holds the weights, the test metrics and the plots.

    Raises:
        UserError: something in the configuration or the data that the user can mend.
    """
    run = set_up(config)
    data, trainer, checkpoints = run.data, run.trainer, run.checkpoints
    unfinished = checkpoints.run_id if config.trainer.resume == "auto" else None
    with alone(config, run.key), tracking.training_run(config, data, run.key, unfinished) as run_id:
        checkpoints.run_id = run_id
        for epoch in trainer.fit():
            log.info(
                "epoch %d of %d: loss %.3f, validation accuracy %.2f %%, %.0f images per second",
                *(epoch.number, config.trainer.epochs, epoch.metrics["train_loss"]),
                *(100 * epoch.metrics["validation_accuracy"], epoch.metrics["images_per_second"]),
            )
            mlflow.log_metrics(epoch.metrics, step=epoch.number)
            tracking.log_losses(run_id, epoch.losses)
        mlflow.log_metrics(calibrate(trainer.classifier, data.validation))
        probabilities = predict(torch_classify(trainer.classifier), data.test, "evaluating")
        evaluation = evaluate(probabilities, data.test.labels, data.classes)
        mlflow.log_metrics({f"test_{name}": value for name, value in evaluation.metrics.items()})
        mlflow.log_table(
            {key: [row[key] for row in evaluation.per_class] for key in evaluation.per_class[0]}, "per_class.json"
        )
        tracking.log_figures(
            learning_curves=tracking.learning_curves_figure(run_id),
            confusion=confusion_figure(evaluation, data.classes),
            reliability=reliability_figure(probabilities, data.test.labels),
        )
        tracking.log_report(f"{config.model.name} on {data.name}", evaluation, probabilities, data.test, data.classes)
        tracking.log_array(run_id, tracking.PROBABILITIES_FILE, probabilities)
        tracking.log_model(trainer.classifier, data.classes)
    checkpoints.remove()
    log.info(
        "test accuracy %.2f %% on %d pictures; MLflow run %s",
        100 * evaluation.metrics["accuracy"],
        len(data.test),
        run_id,
    )
    return run_id


@contextmanager
def alone(config: DictConfig, key: str) -> Iterator[None]:
    """Refuses a second run of the same key at the same time, which would write over the checkpoints of the first."""
    path = Path(config.state_dir) / "locks" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"just this is being trained already: run key {key}, lock {path}; wait for it, or change seed=..."
        ) from error


def run_key(config: DictConfig, data: ImageData) -> str:
    """What a run depends on, as a hash: two runs of one key are the same run."""
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    what_counts = {name: resolved[name] for name in ("transforms", "model", "trainer", "seed")}
    del what_counts["trainer"]["resume"]
    pictures = [data.fingerprint, *data.train.names, *data.validation.names, *data.test.names]
    return hashlib.sha256("\n".join([json.dumps(what_counts), *pictures]).encode()).hexdigest()[:16]


def finished_run(config: DictConfig) -> str | None:
    """The MLflow run that has trained just this, if there is one."""
    key = run_key(config, load_data(config.data, config.seed))
    client = tracking.connect()
    experiment = tracking.experiment_id(config.mlflow_experiment)
    runs = client.search_runs([experiment], f"tags.run_key = '{key}' and attributes.status = 'FINISHED'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def main(config: DictConfig) -> None:
    """Trains, as one process or as one of those that `accelerate launch` starts."""
    if not PartialState().is_main_process:
        logging.disable(logging.INFO)
        for _ in set_up(config).trainer.fit():  # the first process evaluates and tracks for all
            pass
        return
    rich.print(Syntax(OmegaConf.to_yaml(config), "yaml", background_color="default"))
    train(config)


if __name__ == "__main__":
    hydra_command(main)
