"""ONNX: the classifier with Resize and Normalize inside the graph, checked against PyTorch before anything else."""

import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import onnx
import onnxruntime
import torch
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from training import tracking
from training.data import load_data
from training.errors import UserError
from training.evaluation import Classify, predict
from training.models import CIFARClassifier
from training.preprocessing import INTERPOLATION

log = logging.getLogger(__name__)
logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # it tells every tensor that it merges

OPSET = 20
INPUT, OUTPUT = "images", "probabilities"
MODEL_FILE = "model.onnx"
PROBABILITY_TOLERANCE = 1e-3
# Two classes closer than this in PyTorch's answer are a tie: either is right.
TIE = 1e-4

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), INPUT)]),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1), OUTPUT)]),
)


class _Probabilities(nn.Module):
    """The classifier as it is served: softmax included."""

    def __init__(self, classifier: CIFARClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).softmax(1)


def export_onnx(classifier: CIFARClassifier, path: Path, metadata: dict[str, str]) -> None:
    """Writes `images` uint8 (N, H, W, 3) -> `probabilities` float32 (N, classes), for any N, H and W.

    Args:
        metadata: what the file says of itself.
    """
    example = torch.zeros(2, 40, 48, 3, dtype=torch.uint8)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    module = _Probabilities(classifier.cpu().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": dimensions},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = cast(ONNXProgram, program).model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def onnx_classify(path: Path) -> Classify:
    """An ONNX file as a function of arrays."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def classify(images: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
        return probabilities

    return classify


def onnx_metadata(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself."""
    properties = onnx.load(path, load_external_data=False).metadata_props
    return {entry.key: entry.value for entry in properties}


@dataclass(frozen=True)
class Parity:
    """How far two sets of probabilities lie apart.

    Attributes:
        max_difference: the largest difference of a probability.
        disagreements: pictures with another top-1 class, ties left out.
    """

    max_difference: float
    disagreements: int

    @property
    def holds(self) -> bool:
        return self.max_difference <= PROBABILITY_TOLERANCE and self.disagreements == 0


def compare(expected: np.ndarray, actual: np.ndarray) -> Parity:
    """Compares probabilities (N, classes) picture by picture."""
    rows = np.arange(len(expected))
    gap = expected.max(axis=1) - expected[rows, actual.argmax(axis=1)]
    return Parity(float(np.abs(expected - actual).max()), int((gap > TIE).sum()))


def export_run(run_id: str) -> str:
    """Exports a run's model, checks it over the whole test set, and logs file and findings to the run.

    Returns:
        The URI of the logged model.

    Raises:
        UserError: ONNX Runtime's answers are not PyTorch's; nothing is logged then but the finding.
    """
    config = tracking.run_config(run_id)
    data = load_data(config.data, config.seed)
    run = MlflowClient().get_run(run_id)
    if run.data.tags["data_fingerprint"] != data.fingerprint:
        raise UserError(f"the pictures of run {run_id} have changed since it was trained; train it again")
    metadata = {
        "classes": json.dumps(data.classes),
        "image_size": str(config.model.image_size),
        "mean": json.dumps(list(config.model.mean)),
        "std": json.dumps(list(config.model.std)),
        "interpolation": INTERPOLATION,
        "model_name": config.model.name,
        "mlflow_run_id": run_id,
        "data_name": data.name,
        **{key: run.data.tags[key] for key in ("git_commit", "git_dirty", "data_fingerprint")},
        **{key: str(value) for key, value in run.data.metrics.items() if key.startswith("test_")},
    }
    with tempfile.TemporaryDirectory() as directory, mlflow.start_run(run_id=run_id):
        path = Path(directory) / MODEL_FILE
        export_onnx(tracking.load_model(run_id), path, metadata)
        expected = np.load(tracking.artifact(run_id, tracking.PROBABILITIES_FILE))
        parity = compare(expected, predict(onnx_classify(path), data.test, "checking the ONNX file"))
        mlflow.log_metrics(
            {"parity_max_difference": parity.max_difference, "parity_disagreements": parity.disagreements}
        )
        if not parity.holds:
            raise UserError(
                f"the ONNX file of run {run_id} is not its PyTorch model: probabilities differ by up to "
                f"{parity.max_difference:.1e}, {parity.disagreements} pictures get another class. It is not registered."
            )
        model = mlflow.onnx.log_model(
            onnx.load(path),
            name="onnx",
            signature=SIGNATURE,
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"],
            metadata=metadata,
            save_as_external_data=False,  # one file that is enough by itself
        )
    log.info("ONNX agrees with PyTorch on %d pictures, within %.1e", len(data.test), parity.max_difference)
    return str(model.model_uri)
