"""The main job: data -> candidates -> evaluation -> ONNX -> registry -> champion.

python -m flows.retrain '{"models": ["efficientnet_lite0"], "experiment": "quick", "data": "PATH"}'
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from mlflow import MlflowClient
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from pydantic import Field

from flows.failures import RETRIES
from training import registry, tracking
from training.config import compose_config
from training.data import load_data
from training.errors import UserError, exit_on_user_error
from training.export import export_run
from training.settings import require_valid
from training.train import train


@task(task_run_name="prepare {data}")
def prepare_data(overrides: list[str], data: str) -> str:
    """Fills the cache, so that every candidate finds its pictures decoded; returns their fingerprint."""
    config = compose_config(overrides)
    return load_data(config.data, config.seed).fingerprint


# Another try goes on from the last checkpoint.
@task(task_run_name="train {model}", **RETRIES)
def train_candidate(overrides: list[str], model: str) -> str:
    """Trains and evaluates one model; returns its MLflow run."""
    return train(compose_config([*overrides, f"model={model}"]))


@task(task_run_name="choose the best")
def choose_best(run_ids: list[str]) -> str:
    """The candidate with the best validation accuracy; the test set has no say in it."""
    client: MlflowClient = tracking.connect()
    runs = [client.get_run(run_id) for run_id in run_ids]
    accuracies = {run.info.run_id: best_validation_accuracy(client, run.info.run_id) for run in runs}
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


def best_validation_accuracy(client: MlflowClient, run_id: str) -> float:
    return max(metric.value for metric in client.get_metric_history(run_id, "validation_accuracy"))


@task(task_run_name="export to ONNX", **RETRIES)
def export(run_id: str) -> str:
    """Exports and checks the model; returns the URI of the logged ONNX model."""
    return export_run(run_id)


@task(task_run_name="register", **RETRIES)
def register(run_id: str, model_uri: str) -> str:
    """Registers the checked model; returns its version."""
    return registry.register(run_id, model_uri)


@task(task_run_name="compare with the champion", **RETRIES)
def promote_if_better(version: str) -> bool:
    """Compares the version with the champion, promotes it or not, and says why."""
    decision = registry.promote_if_better(version)
    title = "is the champion" if decision.promote else "is not promoted"
    create_markdown_artifact(f"# Version {version} {title}\n\n{decision.reason}", key="decision")
    return decision.promote


@flow(name="retrain", log_prints=True)
def retrain(
    models: Annotated[list[str], Field(min_length=1)] = ["efficientnet_lite0"],  # noqa: B006
    experiment: str = "quick",
    data: str = "cifar10",
    overrides: list[str] = [],  # noqa: B006
) -> str:
    """Trains candidates, exports and registers the best, and makes it the champion if it is better.

    Args:
        models: options of `training/conf/model`.
        experiment: an option of `training/conf/experiment`.
        data: `cifar10`, `digits`, or the path of a folder or an archive with train/ and test/ in it.
        overrides: further Hydra overrides, such as `trainer.epochs=2`.

    Returns:
        The registered version.
    """
    common = [*data_overrides(data), f"experiment={experiment}", *overrides]
    for model in models:
        require_valid(compose_config([*common, f"model={model}"]))  # a mistake is refused before any work is done
    prepare_data(common, data)
    best = choose_best([train_candidate(common, model) for model in models])
    version = register(best, export(best))
    promote_if_better(version)
    get_run_logger().info("%s version %s is registered", registry.REGISTERED_MODEL, version)
    return version


def data_overrides(data: str) -> list[str]:
    """The Hydra overrides for a data set by its name or path."""
    if data in ("cifar10", "digits"):
        return [f"data={data}"]
    path = Path(data).expanduser().resolve()
    if not data or not path.exists():
        raise UserError(f"data={data!r}: no such path; give a folder or an archive of pictures, cifar10 or digits")
    root, name = (text.replace("'", r"\'") for text in (str(path), path.stem))
    return ["data=folder", f"data.root='{root}'", f"data.name='{name}'"]


def parameters(text: str) -> dict[str, Any]:
    """The flow's parameters from JSON, checked before a flow run is made for them."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise UserError(f"{text}: give an object with {', '.join(retrain.parameters.properties)}")
        checked: dict[str, Any] = retrain.validate_parameters(values)
    except (json.JSONDecodeError, ParameterTypeError, SignatureMismatchError) as error:
        raise UserError(f"{text}: {' '.join(str(error).split()):.200}") from error
    return checked


if __name__ == "__main__":
    with exit_on_user_error():
        retrain(**parameters(sys.argv[1] if len(sys.argv) > 1 else "{}"))
