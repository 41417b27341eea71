"""What MLflow keeps of a run: enough to trust it, and to build its model again."""

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, cast

import mlflow
import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from training.data import ImageData, Pictures
from training.errors import UserError
from training.evaluation import Evaluation
from training.models import CIFARClassifier, build_model
from training.report import write_report

# It tells of every start and end, and of the graphics card that is not there.
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
ENVIRONMENT_FILE = "environment.txt"
WEIGHTS_FILE = "checkpoint/model.safetensors"
PROBABILITIES_FILE = "test_probabilities.npy"
# Those of the ONNX file, which INT8 makes others than PyTorch's.
SERVED_PROBABILITIES_FILE = "served_test_probabilities.npy"


def connect() -> MlflowClient:
    """Points MLflow at MLFLOW_TRACKING_URI, or at SQLite and files in the state directory."""
    state = Path(os.environ.get("STATE_DIR", "state")).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    return MlflowClient()


def experiment_id(name: str) -> str:
    """The MLflow experiment of that name, made when it is not there yet."""
    client = connect()
    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    uri = mlflow.get_tracking_uri()
    # An MLflow server knows where its artifacts go; a database file has them beside it.
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").resolve().as_uri()
    return str(client.create_experiment(name, artifact_location=location))


@contextmanager
def training_run(config: DictConfig, data: ImageData, run_key: str, run_id: str | None) -> Iterator[str]:
    """Opens an MLflow run, or the interrupted one of that id again; it ends FAILED when the block raises."""
    parent = experiment_id(config.mlflow_experiment)
    if run_id and not MlflowClient().search_runs([parent], f"attributes.run_id = '{run_id}'"):
        run_id = None  # tracked elsewhere, or deleted since
    tags = {"model": config.model.name, "data": data.name, "data_fingerprint": data.fingerprint, "run_key": run_key}
    with mlflow.start_run(run_id, parent, config.model.name, log_system_metrics=True) as run:
        mlflow.set_tags({**tags, **git_state()})
        if not run_id:  # a run that goes on keeps what it was started with
            mlflow.log_params(_flat(OmegaConf.to_container(config, resolve=False, throw_on_missing=False)))
            MlflowClient().log_inputs(run.info.run_id, _dataset_inputs(config, data))
        mlflow.log_text(OmegaConf.to_yaml(config), CONFIG_FILE)
        mlflow.log_text(environment(), ENVIRONMENT_FILE)
        yield run.info.run_id


def run_page(run: Run) -> str | None:
    """The run's page on MLflow's server; people may open it at another address than programs: MLFLOW_PAGE."""
    address = os.environ.get("MLFLOW_PAGE") or mlflow.get_tracking_uri()
    if not address.startswith("http"):
        return None
    return f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _dataset_inputs(config: DictConfig, data: ImageData) -> list[DatasetInput]:
    """Each split as one of MLflow's datasets: where it came from, its fingerprint, and how many pictures it has."""
    source = json.dumps(OmegaConf.to_container(config.data.source, resolve=True))
    digest = data.fingerprint[:36]  # as long as MLflow allows
    return [
        DatasetInput(
            Dataset(f"{data.name} {split}", digest, "local", source, profile=json.dumps({"pictures": len(pictures)})),
            [InputTag("mlflow.data.context", split)],
        )
        for split, pictures in (("train", data.train), ("validation", data.validation), ("test", data.test))
    ]


def environment() -> str:
    """The installed packages with their versions, as `pip freeze` has them."""
    packages = {f"{package.name}=={package.version}" for package in distributions()}
    return "".join(f"{package}\n" for package in sorted(packages, key=str.lower))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {name: value for key, branch in tree.items() for name, value in _flat(branch, f"{prefix}{key}.").items()}


def git_state() -> dict[str, str]:
    """The commit that the program runs from and whether files differ from it; `unknown` outside a checkout."""

    def git(*arguments: str) -> str | None:
        root = Path(__file__).parent
        try:
            return subprocess.run(
                ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {
        "git_commit": commit or os.environ.get("GIT_COMMIT", "unknown"),
        "git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
    }


def log_losses(run_id: str, losses: dict[int, float]) -> None:
    """Logs the loss of every step in one request."""
    now = mlflow.utils.time.get_current_time_millis()
    metrics = [Metric("loss", value, now, step) for step, value in losses.items()]
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one request
        MlflowClient().log_batch(run_id, metrics[start : start + 1000])


def learning_curves_figure(run_id: str) -> Figure:
    """Loss by step, and validation accuracy by epoch."""
    client = MlflowClient()
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, metric in ((left, "loss"), (right, "validation_accuracy")):
        history = sorted(client.get_metric_history(run_id, metric), key=lambda entry: entry.step)
        steps, values = [entry.step for entry in history], [entry.value for entry in history]
        axes.plot(steps, values, marker="o" if len(values) < 50 else None)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation accuracy")
    right.xaxis.get_major_locator().set_params(integer=True)
    return figure


def log_figures(**figures: Figure) -> None:
    for name, figure in figures.items():
        mlflow.log_figure(figure, f"plots/{name}.png")


def log_report(
    title: str, evaluation: Evaluation, probabilities: np.ndarray, pictures: Pictures, classes: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "report.html"
        write_report(path, title, evaluation, probabilities, pictures, classes)
        mlflow.log_artifact(str(path))


def log_array(run_id: str, name: str, array: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        np.save(path, array)
        mlflow.log_artifact(str(path), run_id=run_id)


def log_model(model: CIFARClassifier, classes: list[str]) -> None:
    """Keeps the trained weights, and the classes that they tell apart."""
    mlflow.log_text(json.dumps(classes), CLASSES_FILE)
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / Path(WEIGHTS_FILE).name
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
        mlflow.log_artifact(str(weights), str(Path(WEIGHTS_FILE).parent))


def artifact(run_id: str, path: str) -> Path:
    """A local copy of a run's artifact."""
    connect()
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path))
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} has no {path}; was its training cut off? ({error})") from error


def run_config(run_id: str) -> DictConfig:
    """The configuration a run was started with."""
    config = OmegaConf.load(artifact(run_id, CONFIG_FILE))
    return cast(DictConfig, config)


def run_classes(run_id: str) -> list[str]:
    classes: list[str] = json.loads(artifact(run_id, CLASSES_FILE).read_text())
    return classes


def load_model(run_id: str) -> CIFARClassifier:
    """The PyTorch model that a run trained, ready to answer."""
    model = build_model(run_config(run_id).model, len(run_classes(run_id)), pretrained=False)
    model.load_state_dict(load_file(artifact(run_id, WEIGHTS_FILE)))
    return model.eval()
