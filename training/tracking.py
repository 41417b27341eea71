"""What MLflow keeps of a run: enough to trust it, and to build its model again."""

import io
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

import mlflow
import numpy as np
import pandas
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from serving.model import registry
from serving.model.errors import UserError, without_credentials
from training.data.sources import LeftOut
from training.data.split import ImageData
from training.settings import Settings, TrainSettings

log = logging.getLogger(__name__)
# It logs every start and stop, and complains about a missing GPU.
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
ENVIRONMENT_FILE = "environment.txt"
LEFT_OUT_FILE = "left_out.csv"
WEIGHTS_FILE = "checkpoint/model.safetensors"
PROBABILITIES_FILE = "test_probabilities.npy"
# Those of the ONNX file in float32.
SERVED_PROBABILITIES_FILE = "served_test_probabilities.npy"
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows on the run's page


def state_dir() -> Path:
    return Path(os.environ.get("STATE_DIR", "state"))


def connect() -> MlflowClient:
    """Points MLflow at MLFLOW_TRACKING_URI, or at SQLite and files in the state directory."""
    registry.connect(registry.tracking_uri(state_dir()))
    return MlflowClient()


def experiment_id(name: str) -> str:
    """The MLflow experiment of that name, created if it does not exist; RegistryError if MLflow does not answer."""
    client = connect()
    try:
        if not (experiment := client.get_experiment_by_name(name)):
            location = registry.artifact_location(mlflow.get_tracking_uri(), state_dir())
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException:
                if not (experiment := client.get_experiment_by_name(name)):  # another process was quicker
                    raise
        return str(experiment.experiment_id)
    except Exception as error:
        raise registry.named_error(error, f"the experiment {name}") from error


@contextmanager
def training_run(settings: TrainSettings, data: ImageData, run_key: str, run_id: str | None) -> Iterator[str]:
    """Opens an MLflow run, or the interrupted one of that id again.

    It ends FAILED when the block raises, and KILLED when the program is told to stop.
    """
    parent = experiment_id(settings.mlflow_experiment)
    if run_id and not MlflowClient().search_runs([parent], f"attributes.run_id = '{run_id}'"):
        run_id = None  # tracked elsewhere, or deleted since
    name = settings.model.name
    tags = {"model": name, "data": data.name, "data_fingerprint": data.fingerprint, "run_key": run_key}
    values = settings.model_dump(mode="json")
    with (
        mlflow.start_run(run_id, parent, name, nested=True, log_system_metrics=True) as run,
        when_told_to_stop(lambda: mlflow.end_run("KILLED")),
    ):
        tell_page(run)
        mlflow.set_tags({**tags, **git_state(), DESCRIPTION: ""})  # which said why it was interrupted
        if not run_id:  # a run that goes on keeps what it was started with
            mlflow.log_params(pandas.json_normalize(values).to_dict("records")[0])
            MlflowClient().log_inputs(run.info.run_id, _dataset_inputs(settings, data))
        mlflow.log_text(as_yaml(settings), CONFIG_FILE)
        mlflow.log_text(environment(), ENVIRONMENT_FILE)
        mlflow.log_text(pandas.DataFrame(data.left_out, columns=LeftOut._fields).to_csv(index=False), LEFT_OUT_FILE)
        used = len(data.train) + len(data.validation) + len(data.test)
        mlflow.log_metrics({"pictures_used": used, "files_left_out": len(data.left_out)})
        yield run.info.run_id


@contextmanager
def when_told_to_stop(act: Callable[[], object]) -> Iterator[None]:
    """Acts where the block is ended by SIGTERM, Ctrl-C or a cancelled flow, and not by an error."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        try:
            act()
        except Exception:  # MLflow is away, say: the stop is what counts
            log.exception("the run was stopped before its end, and this could not be noted with it")
        raise


def as_yaml(settings: Settings) -> str:
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def run_page(run: Run) -> str | None:
    """The run's page on MLflow's server; people may open it at another address than programs: MLFLOW_PAGE."""
    address = os.environ.get("MLFLOW_PAGE") or mlflow.get_tracking_uri()
    if not address.startswith("http"):
        return None
    return f"{without_credentials(address)}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def tell_page(run: Run) -> None:
    if page := run_page(run):
        log.info(f"in MLflow: {page}")


def _dataset_inputs(settings: TrainSettings, data: ImageData) -> list[DatasetInput]:
    """Each split as one of MLflow's datasets: where it came from, its fingerprint, and how many pictures it has."""
    source = json.dumps(settings.data.source)
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


def git_state() -> dict[str, str]:
    """The commit that the program runs from and whether files differ from it.

    Outside a checkout GIT_COMMIT and GIT_DIRTY tell, as in the images, or it is `unknown`.
    """

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {
        "git_commit": commit or os.environ.get("GIT_COMMIT", "unknown"),
        "git_dirty": os.environ.get("GIT_DIRTY", "unknown") if changes is None else str(bool(changes)).lower(),
    }


def log_losses(run_id: str, losses: Mapping[int, float]) -> None:
    """Logs the loss of every step in one request."""
    now = mlflow.utils.time.get_current_time_millis()
    metrics = [Metric("loss", value, now, step) for step, value in losses.items()]
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one request
        MlflowClient().log_batch(run_id, metrics[start : start + 1000])


def history(run_id: str, metric: str) -> dict[int, float]:
    """A metric's values by step."""
    entries = connect().get_metric_history(run_id, metric)
    return {entry.step: entry.value for entry in sorted(entries, key=lambda entry: (entry.step, entry.timestamp))}


def log_file(run_id: str, name: str, content: bytes) -> None:
    """Keeps a file with a run; `name` may have folders in it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        MlflowClient().log_artifacts(run_id, directory)


def log_array(run_id: str, name: str, array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    log_file(run_id, name, file.getvalue())


def artifact(run_id: str, path: str) -> Path:
    """A local copy of a run's artifact; UserError if it has none, RegistryError if MLflow does not answer."""
    client = connect()
    try:
        folder = path.rpartition("/")[0] or None
        if path in [file.path for file in client.list_artifacts(run_id, folder)]:
            return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path))
    except Exception as error:
        raise registry.named_error(error, f"{path} of run {run_id}") from error
    raise UserError(f"run {run_id} has no {path}; was its training cut off?")


def run_settings(run_id: str) -> TrainSettings:
    """The settings that a run was started with; the weights of its model are its own by now, and not fetched again."""
    values = yaml.safe_load(artifact(run_id, CONFIG_FILE).read_text())
    values["model"]["weights"] = "none"
    try:
        return TrainSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(f"run {run_id} was trained by another version of this program; train it again") from error
