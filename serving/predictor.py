"""An ONNX model that answers, and where it comes from."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from serving.errors import StartError

MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file, and the registry's version of it; the version is `file` for a file from elsewhere."""

    path: Path
    version: str


def fetch(model: str, state_dir: Path) -> ModelFile:
    """Finds the ONNX file of a registry URI (`models:/NAME@ALIAS`, `models:/NAME/VERSION`) or of a path.

    Raises:
        StartError: there is no such model or file.
    """
    if not model.startswith("models:/"):
        if not Path(model).is_file():
            raise StartError(f"SERVING_MODEL={model}: no such file; give an ONNX file or models:/NAME@ALIAS")
        return ModelFile(Path(model), "file")

    import mlflow  # not needed to serve a file
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(state_dir / 'mlflow.db').resolve()}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise StartError(f"there is no registry at {uri}; train a model first (make demo), or set MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    name, at, alias = model.removeprefix("models:/").partition("@")
    try:
        client = mlflow.MlflowClient()
        version = client.get_model_version_by_alias(name, alias).version if at else name.partition("/")[2]
        directory = mlflow.artifacts.download_artifacts(f"models:/{name.partition('/')[0]}/{version}")
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise StartError(
            f"{model} is not in the registry at {uri} ({reason}); make demo trains and registers one"
        ) from error
    return ModelFile(Path(directory) / MODEL_FILE, str(version))


class Predictor:
    """An ONNX Runtime session and what its file says of itself."""

    def __init__(self, file: ModelFile) -> None:
        try:
            self._session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
            self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(self.metadata["classes"])
        except Exception as error:  # ONNX Runtime raises a kind of its own for every way a file can be wrong
            raise StartError(f"{file.path} is not one of our ONNX models ({type(error).__name__}: {error})") from error
        self.version = file.version

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB -> probabilities float32 (N, classes)."""
        (probabilities,) = self._session.run(["probabilities"], {"images": images})
        return probabilities
