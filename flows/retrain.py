"""The main job: data -> candidates -> evaluation -> ONNX -> registry -> champion."""

import os
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from pydantic import Field

from flows.arguments import run_command
from flows.failures import RETRIES
from flows.rollback import lock_everywhere
from serving.model.errors import UserError
from serving.model.registry import registered_name
from training import tracking
from training.config import compose
from training.loop.trainable import check_trainable
from training.release import promotion, registry
from training.release.candidate import export_run
from training.train import read, train

EXAMPLE = "python -m flows.retrain models=[resnet18,densenet121] experiment=quick data=PATH"


@task(task_run_name="prepare {data}", **RETRIES)
def prepare_data(overrides: list[str], models: list[str], data: str, name: str, replace_classes: bool) -> None:
    """Fills the cache, so that every candidate finds its pictures decoded; refuses what can't replace the champion."""
    for model in models:
        _, pictures = read(compose([*overrides, f"model={model}"]))
    if not replace_classes:
        registry.require_same_classes(name, pictures.classes)


# A retry resumes from the last checkpoint.
@task(task_run_name="train {model}", **RETRIES)
def train_candidate(overrides: list[str], model: str) -> str:
    """Trains and evaluates one model; returns its MLflow run."""
    return train(compose([*overrides, f"model={model}"]))


@task(task_run_name="choose the best", **RETRIES)
def choose_best(run_ids: list[str]) -> str:
    """The candidate with the best validation accuracy; the test set has no say in it."""
    client = tracking.connect()
    runs = [client.get_run(run_id) for run_id in run_ids]
    accuracies = {run_id: max(tracking.history(run_id, "validation_accuracy").values()) for run_id in run_ids}
    rows = [
        {
            "model": run.data.tags["model"],
            "validation accuracy": f"{accuracies[run.info.run_id]:.2%}",
            "test accuracy": f"{run.data.metrics['test_accuracy']:.2%}",
            "images per second": f"{run.data.metrics['images_per_second']:.0f}",
            "MLflow run": run.info.run_id,
        }
        for run in runs
    ]
    create_table_artifact(rows, key="candidates", description="The candidates of this retraining")
    best = max(runs, key=lambda run: accuracies[run.info.run_id])
    if page := tracking.run_page(best):
        create_link_artifact(page, f"{best.data.tags['model']} in MLflow", key="mlflow-run", description="The best one")
    return best.info.run_id


@task(task_run_name="export to ONNX", **RETRIES)
def export(run_id: str) -> str:
    """Exports and checks the model; returns the URI of the logged ONNX model."""
    return export_run(run_id)


@task(task_run_name="register", **RETRIES)
def register(run_id: str, model_uri: str, name: str) -> str:
    """Registers the checked model; returns its version."""
    return registry.register(run_id, model_uri, name, lock_everywhere)


@task(task_run_name="compare with the champion", **RETRIES)
def promote_if_better(version: str, name: str, replace_classes: bool = False) -> bool:
    """Compares the version with the champion, promotes it or not, and says why."""
    decision = promotion.promote_if_better(version, name, replace_classes, lock_everywhere)
    create_markdown_artifact(f"# Version {version} {decision.verdict}\n\n{decision.reason}", key="decision")
    return decision.promote


@flow(name="retrain", log_prints=True)
def retrain(
    models: Annotated[list[str], Field(min_length=1)] = ["efficientnet_lite0"],  # noqa: B006
    experiment: str = "quick",
    data: str = "cifar10",
    overrides: list[str] = [],  # noqa: B006
    name: str = "",
    replace_classes: bool = False,
) -> str:
    """Trains candidates, exports and registers the best, and makes it the champion if it is better.

    Args:
        models: options of `training/conf/model`.
        experiment: an option of `training/conf/experiment`.
        data: `cifar10`, `digits`, or the path of pictures: a folder or an archive of classes, a CSV or Parquet file.
        overrides: further Hydra overrides, such as `trainer.epochs=2`; in a shell overrides='["trainer.epochs=2"]'.
        name: the registered model; empty: MODEL_NAME, or image-classifier.
        replace_classes: whether a champion that knows other classes may be replaced.

    Returns:
        The registered version.
    """
    name = registered_name(name)
    common = [*data_overrides(data), f"experiment={experiment}", *overrides]
    for model in models:
        check_trainable(compose([*common, f"model={model}"]))  # a mistake is refused before any work is done
    prepare_data(common, models, data, name, replace_classes)
    best = choose_best([train_candidate(common, model) for model in models])
    version = register(best, export(best), name)
    promote_if_better(version, name, replace_classes)
    get_run_logger().info("%s version %s is registered", name, version)
    return version


def data_overrides(data: str) -> list[str]:
    """The Hydra overrides for a data set by its name or path."""
    if data in ("cifar10", "digits"):
        return [f"data={data}"]
    path = Path(os.path.expanduser(data)).resolve()
    if not data or not path.exists():
        raise UserError(f"data={data}: no such path; give a folder or an archive of pictures, cifar10 or digits")
    return ["data=folder", f"data.root={path}", f"data.name={path.stem}"]


if __name__ == "__main__":
    run_command(retrain, EXAMPLE)
