"""MLflow's registry, as the service uses it: which version a name stands for, and that version's ONNX file."""

import os
from pathlib import Path
from typing import Any

from serving.errors import ModelError, RegistryError

MODEL_FILE = "model.onnx"
# MLflow's own defaults wait for many minutes; a service that has a model on disk has something better to do. Nor does
# its log want a progress bar.
MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def find_version(model: str, state_dir: Path) -> str:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` stands for now.

    Raises:
        ModelError: there is none.
        RegistryError: the registry does not answer.
    """
    uri = _tracking_uri(state_dir)
    name, at, alias = model.removeprefix("models:/").partition("@")
    try:
        client = _mlflow(uri).MlflowClient()
        if at:
            return str(client.get_model_version_by_alias(name, alias).version)
        name, _, version = name.partition("/")
        return str(client.get_model_version(name, version).version)
    except Exception as error:  # MLflow's own, the database's and the network's
        reason = str(error).splitlines()[0]
        if getattr(error, "error_code", None) in MISSING:
            raise ModelError(
                f"{model} is not in the registry at {uri} ({reason}); make demo trains and registers one"
            ) from error
        raise RegistryError(f"the registry at {uri} does not answer ({reason})") from error


def download(model: str, version: str, state_dir: Path, directory: Path) -> Path:
    """Writes what belongs to a version into `directory`; returns its ONNX file.

    Raises:
        RegistryError: it can't be had.
    """
    uri = _tracking_uri(state_dir)
    name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    try:
        downloaded = _mlflow(uri).artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(directory))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RegistryError(
            f"version {version} of {name} can't be fetched from the registry at {uri} ({reason})"
        ) from error
    return Path(downloaded) / MODEL_FILE


def _tracking_uri(state_dir: Path) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(state_dir / 'mlflow.db').resolve()}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RegistryError(
            f"there is no registry at {uri}; train a model first (make demo), or set MLFLOW_TRACKING_URI"
        )
    return uri


def _mlflow(uri: str) -> Any:
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # takes seconds, and is not needed to serve a file

    mlflow.set_tracking_uri(uri)
    return mlflow
