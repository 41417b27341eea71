"""ONNX: the classifier with Resize and Normalize inside the graph, checked against PyTorch before anything else."""

import json
import logging
import tempfile
import warnings
from dataclasses import asdict, dataclass
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
from training.data import ImageData, load_data
from training.errors import UserError, full_disk_in_words
from training.evaluation import BATCH_SIZE, Classify, evaluate, predict
from training.models import CIFARClassifier
from training.preprocessing import INTERPOLATION
from training.quantization import LARGEST_LOSS, quantize_int8, speed_ratio

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


def export_onnx(classifier: CIFARClassifier, path: Path) -> None:
    """Writes `images` uint8 (N, H, W, 3) -> `probabilities` float32 (N, classes), for any N, H and W."""
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


@full_disk_in_words()
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
    with tempfile.TemporaryDirectory() as directory:
        path, quantization = Path(directory) / MODEL_FILE, "none"
        export_onnx(tracking.load_model(run_id), path)
        probabilities = _checked_against_pytorch(path, run_id, data)
        if config.export.quantize == "int8":
            int8, int8_probabilities, kept = _quantized(path, run_id, data, probabilities)
            if kept:
                path, probabilities, quantization = int8, int8_probabilities, "int8"
        tracking.log_array(run_id, tracking.SERVED_PROBABILITIES_FILE, probabilities)
        test_metrics = evaluate(probabilities, data.test.labels, data.classes).metrics
        metadata = {
            "classes": json.dumps(data.classes),
            "image_size": str(config.model.image_size),
            "mean": json.dumps(list(config.model.mean)),
            "std": json.dumps(list(config.model.std)),
            "interpolation": INTERPOLATION,
            "quantization": quantization,
            "model_name": config.model.name,
            "mlflow_run_id": run_id,
            "data_name": data.name,
            **{key: run.data.tags[key] for key in ("git_commit", "git_dirty", "data_fingerprint")},
            **{f"test_{name}": str(value) for name, value in test_metrics.items()},
        }
        model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            model,
            name="onnx",
            signature=SIGNATURE,
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"],
            metadata=metadata,
            save_as_external_data=False,  # one file that is enough by itself
        )
    return str(logged.model_uri)


def _checked_against_pytorch(path: Path, run_id: str, data: ImageData) -> np.ndarray:
    """The file's probabilities of the test pictures, which are PyTorch's."""
    expected = np.load(tracking.artifact(run_id, tracking.PROBABILITIES_FILE))
    probabilities = predict(onnx_classify(path), data.test, "checking the ONNX file")
    parity = compare(expected, probabilities)
    mlflow.log_metrics({f"parity_{name}": value for name, value in asdict(parity).items()}, run_id=run_id)
    if not parity.holds:
        raise UserError(
            f"the ONNX file of run {run_id} is not its PyTorch model: probabilities differ by up to "
            f"{parity.max_difference:.1e}, {parity.disagreements} pictures get another class. It is not registered."
        )
    log.info("ONNX agrees with PyTorch on %d pictures, within %.1e", len(data.test), parity.max_difference)
    return probabilities


def _quantized(path: Path, run_id: str, data: ImageData, probabilities: np.ndarray) -> tuple[Path, np.ndarray, bool]:
    """The INT8 file beside `path`, its probabilities of the test pictures, and whether it is as good."""
    int8 = path.with_name(f"int8-{path.name}")
    quantize_int8(path, int8, INPUT, data.train)
    classify = onnx_classify(int8)
    answers = predict(classify, data.test, "checking the INT8 file")
    before, after = (float((array.argmax(axis=1) == data.test.labels).mean()) for array in (probabilities, answers))
    ratio = speed_ratio(classify, onnx_classify(path), next(data.test.batches(BATCH_SIZE))[1])
    kept = before - after <= LARGEST_LOSS
    metrics = {"float32_test_accuracy": before, "int8_test_accuracy": after, "int8_speed_ratio": ratio}
    mlflow.log_metrics({**metrics, "int8_kept": kept}, run_id=run_id)
    log.info(
        "INT8 is %s: %.2f %% of the test pictures are right, %.2f %% in float32; %.1f times as fast",
        *("kept" if kept else f"not kept, more than {LARGEST_LOSS:.1%} are lost", 100 * after, 100 * before, ratio),
    )
    return int8, answers, kept
