"""One training run: python -m training.train experiment=quick model=efficientnet_lite0 trainer.epochs=2"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import rich
import torch
from accelerate.utils.memory import clear_device_cache
from filelock import Timeout
from rich.syntax import Syntax
from safetensors.torch import save

from serving.model.errors import RegistryError, UserError, without_credentials
from training import tracking
from training.config import hydra_command
from training.data.augmentation import AlbumentationsDataset, build_transform
from training.data.pictures import Pictures
from training.data.split import ImageData, load_data
from training.loop.checkpoint import Checkpoints, address, checkpoints_dir, run_lock
from training.loop.small_data import suited
from training.loop.trainable import check_trainable
from training.loop.trainer import Epoch, Trainer
from training.machine.processes import in_processes, join
from training.model.classifier import build_model
from training.quality.calibration import calibrate
from training.quality.evaluation import Evaluation, evaluate, predict, torch_classify
from training.quality.figures import confusion_csv
from training.quality.report import log_report
from training.settings import TrainSettings

log = logging.getLogger(__name__)

FEW = 10  # test pictures of a class


@dataclass
class Run:
    """What is needed to train: settings that suit the pictures, these, the trainer, checkpoints under the run's key."""

    settings: TrainSettings
    data: ImageData
    trainer: Trainer
    checkpoints: Checkpoints
    key: str


def read(settings: TrainSettings) -> tuple[TrainSettings, ImageData]:
    """The pictures, and the settings that suit their number; UserError, before any work, for what can't be trained."""
    check_trainable(settings)
    with join().main_process_first():
        data = load_data(settings.data, settings.seed, settings.model.decoding)
        suiting = suited(settings, len(data.train))
        if suiting.model.decoding != settings.model.decoding:
            data = load_data(suiting.data, suiting.seed, suiting.model.decoding)
    check_trainable(suiting)
    return suiting, data


def few_test_pictures(data: ImageData) -> dict[str, int]:
    """The classes with fewer than FEW, and how many these have."""
    counts = np.bincount(data.test.labels, minlength=len(data.classes))
    return {name: int(count) for name, count in zip(data.classes, counts, strict=True) if count < FEW}


def set_up(settings: TrainSettings, prefix: str = "") -> Run:
    """Loads the pictures and builds the model; raises UserError as `read` does.

    A prefix of its key tells a run, and its checkpoints, from others with the same settings.
    """
    settings, data = read(settings)
    log.info("%s", data.table())
    if few := few_test_pictures(data):
        named = ", ".join(f"{name} ({count})" for name, count in [*few.items()][:5])
        log.warning(
            f"{len(few)} classes have fewer than {FEW} test pictures, {named} among them: their figures say little"
        )
    chosen = settings.trainer
    log.info(
        f"training {'the head' if chosen.freeze_backbone else 'the network'} for {chosen.length} in batches of "
        f"{chosen.batch_size}, at {chosen.image_size or settings.model.image_size} pixels"
    )
    if chosen.freeze_backbone and (idle := chosen.of_the_backbone()):
        log.warning(f"the head alone is trained, which leaves without effect: {', '.join(idle)}")
    key = prefix + run_key(settings, data)
    checkpoints = Checkpoints(checkpoints_dir(settings.state_dir) / key, address())
    trainer = build_trainer(settings, data, data.train, data.validation, checkpoints)
    return Run(settings, data, trainer, checkpoints, key)


def build_trainer(
    settings: TrainSettings,
    data: ImageData,
    train: Pictures,
    validation: Pictures,
    checkpoints: Checkpoints | None = None,
) -> Trainer:
    """The model with its first weights and what trains it, on `train` and `validation` of the data."""
    clear_device_cache(garbage_collection=True)  # of what trained before in this process, and refers to itself
    torch.manual_seed(settings.seed)
    drop_path = None if settings.trainer.freeze_backbone else settings.trainer.drop_path
    model = build_model(settings.model, len(data.classes), drop_path)
    transform = build_transform(settings.transforms, data.train.common_size(), settings.model.picture_size)
    train_set = AlbumentationsDataset(train, transform)
    batch_size = settings.evaluation_batch_size
    return Trainer(settings.trainer, model, train_set, validation, settings.seed, checkpoints, batch_size)


def try_out(settings: TrainSettings) -> None:
    """Fetches the weights and learns from one batch, of which nothing is kept; raises what training would raise."""
    in_processes(settings.trainer.processes, _try_out, settings)


def _try_out(settings: TrainSettings) -> None:
    settings, data = read(settings)
    first = np.arange(settings.trainer.batch_size)
    train, validation = (split.subset(first[: len(split)]) for split in (data.train, data.validation))
    one_step = settings.trainer.model_copy(update={"steps": 1, "minutes": None})
    next(build_trainer(settings.model_copy(update={"trainer": one_step}), data, train, validation).fit())
    clear_device_cache(garbage_collection=True)  # other processes may train on this GPU next


def train(settings: TrainSettings, patience: float = 0) -> str:
    """Trains, evaluates on the test set, and tracks all of it in MLflow; returns the MLflow run's id.

    `patience` is for how many seconds it waits where this exact run is in progress still.
    """
    return in_processes(settings.trainer.processes, _train, settings, patience)


def _train(settings: TrainSettings, patience: float) -> str:
    run = set_up(settings)
    if not run.trainer.accelerator.is_main_process:
        for _ in run.trainer.fit():  # the first process evaluates and tracks for all
            pass
        return run.checkpoints.run_id or ""
    settings, data, trainer = run.settings, run.data, run.trainer
    with tracked(run, patience) as (run_id, epochs):
        for _ in epochs:
            pass
        batch_size = settings.evaluation_batch_size
        mlflow.log_metrics(calibrate(trainer.classifier, data.validation, batch_size))
        probabilities = predict(torch_classify(trainer.classifier), data.test, "evaluating", batch_size)
        evaluation = evaluate(probabilities, data.test, data.classes)
        tracking.log_file(run_id, tracking.CLASSES_FILE, json.dumps(data.classes).encode())
        weights = {name: tensor.contiguous() for name, tensor in trainer.classifier.state_dict().items()}
        tracking.log_file(run_id, tracking.WEIGHTS_FILE, save(weights))
        log_evaluation(run_id, settings, data, evaluation)
    remove_checkpoints(run)
    log.info(f"test accuracy {evaluation.metrics['accuracy']:.2%} on {len(data.test)} pictures; MLflow run {run_id}")
    return run_id


@contextmanager
def tracked(run: Run, patience: float = 0) -> Iterator[tuple[str, Iterator[Epoch]]]:
    """The MLflow run, which goes on where it was interrupted, and the epochs that are left, kept there as they come."""
    checkpoints = run.checkpoints
    with exclusive_run(run.settings, run.key, patience):
        checkpoints.fetch()
        unfinished = checkpoints.run_id if run.settings.trainer.resume == "auto" else None
        with (
            tracking.training_run(run.settings, run.data, run.key, unfinished) as run_id,
            tracking.when_told_to_stop(lambda: tell_where_to_go_on(checkpoints, run.trainer.epochs)),
        ):
            checkpoints.run_id = run_id
            yield run_id, _tracked_epochs(run, run_id)


def _tracked_epochs(run: Run, run_id: str) -> Iterator[Epoch]:
    trainer = run.trainer
    epochs = trainer.fit()
    processes, threads = trainer.accelerator.num_processes, torch.get_num_threads()
    mlflow.set_tags({"processes": processes, "threads": threads, "steps": trainer.total_steps})
    for epoch in epochs:
        metrics = epoch.metrics
        log.info(
            f"epoch {epoch.number} of {trainer.epochs}: loss {metrics['train_loss']:.3f}, validation "
            f"accuracy {metrics['validation_accuracy']:.2%}, {metrics['images_per_second']:.0f} images per second"
        )
        mlflow.log_metrics(metrics, step=epoch.number)
        tracking.log_losses(run_id, epoch.losses)
        yield epoch


def log_evaluation(run_id: str, settings: TrainSettings, data: ImageData, evaluation: Evaluation) -> None:
    """Keeps the probabilities, the test metrics, the plots and the report with the run."""
    tracking.log_array(run_id, tracking.PROBABILITIES_FILE, evaluation.probabilities)
    mlflow.log_metrics({f"test_{name}": value for name, value in evaluation.metrics.items()})
    rows = evaluation.per_class
    mlflow.log_table({name: [row[name] for row in rows] for name in rows[0]}, "per_class.json")
    mlflow.log_text(confusion_csv(evaluation), "confusion.csv")
    log_report(run_id, settings, data, evaluation)


def tell_where_to_go_on(checkpoints: Checkpoints, epochs: int) -> None:
    """Lets the run's page and the log say from where a run that is told to stop can go on."""
    done = checkpoints.last_epoch()
    where = f"goes on after epoch {done} of {epochs}" if done else "starts anew: no epoch was finished"
    message = f"Stopped before its end. Asked for again with the same settings, it {where}."
    log.warning(message)
    mlflow.set_tag(tracking.DESCRIPTION, message)


def remove_checkpoints(run: Run) -> None:
    """Removes those of a run that has ended, which is not undone where their storage does not answer."""
    try:
        run.checkpoints.remove()
    except RegistryError as error:
        log.warning("%s; its checkpoints stay there", error)


@contextmanager
def exclusive_run(settings: TrainSettings, key: str, patience: float = 0) -> Iterator[None]:
    """Refuses a second run of the same key at the same time, which would write over the checkpoints of the first.

    After so many seconds of `patience`.
    """
    lock = run_lock(settings.state_dir, key)
    try:
        with lock.acquire(timeout=patience):
            yield
    except Timeout as error:
        message = (
            f"this exact run is already in progress (run key {key}, lock {lock.lock_file}); wait for it, or change "
            "seed=..."
        )
        raise UserError(message) from error


def run_key(settings: TrainSettings, data: ImageData) -> str:
    """What a run depends on, as a hash: two runs of one key are the same run."""
    what_counts = settings.model_dump(mode="json", include={"transforms", "model", "trainer", "seed"})
    del what_counts["trainer"]["resume"], what_counts["trainer"]["processes"]
    if (weights := Path(settings.model.weights)).is_file():  # another checkpoint may lie there tomorrow
        what_counts["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    pictures = [data.fingerprint, *data.train.names, *data.validation.names, *data.test.names]
    return hashlib.sha256("\n".join([json.dumps(what_counts), *pictures]).encode()).hexdigest()[:16]


def finished_run(settings: TrainSettings) -> str | None:
    """The MLflow run that has trained just this, if there is one."""
    return next(_finished_runs(*read(settings)), None)


def repeated_run(settings: TrainSettings, data: ImageData) -> str | None:
    """The finished run that another one would only repeat: of this commit, neither of them with changes to it.

    `settings` are those that suit the pictures, as `read` gives them. Where the pictures lie and how the model is
    exported count as well, since what comes after the training follows the run's own settings.
    """
    code = tracking.git_state()
    if code["git_dirty"] != "false":
        return None
    for run_id in _finished_runs(settings, data, **code):
        then = tracking.run_settings(run_id)
        if (then.data, then.export) == (settings.data, settings.export):
            return run_id
    return None


def _finished_runs(settings: TrainSettings, data: ImageData, **tags: str) -> Iterator[str]:
    """The MLflow runs of these tags that have trained just this, the newest first."""
    client = tracking.connect()
    experiment = tracking.experiment_id(settings.mlflow_experiment)
    tags["run_key"] = run_key(settings, data)
    conditions = ["attributes.status = 'FINISHED'", *(f"tags.{name} = '{value}'" for name, value in tags.items())]
    for run in client.search_runs([experiment], " and ".join(conditions)):
        yield str(run.info.run_id)


def main(settings: TrainSettings) -> None:
    """Trains, as one process or as one of those that torchrun starts."""
    if join().is_main_process:
        rich.print(Syntax(without_credentials(tracking.as_yaml(settings)), "yaml", background_color="default"))
    else:
        logging.disable(logging.INFO)
    train(settings)


if __name__ == "__main__":
    hydra_command(main, TrainSettings, "config")
