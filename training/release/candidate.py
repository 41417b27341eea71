"""A finished run as a candidate for the registry: exported, checked over the whole test set, described."""

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from safetensors.torch import load_file

from serving.model.contract import CONTRACT, INPUT, MODEL_FILE, OUTPUT, Metadata
from serving.model.errors import ModelError, UserError
from training import tracking
from training.data.split import ImageData, load_data
from training.model.classifier import ImageClassifier, build_model
from training.quality.evaluation import BATCH_SIZE, evaluate, predict
from training.release.export import export_onnx, onnx_classify, parity
from training.release.quantization import LARGEST_LOSS, quantize_int8, speed_ratio

log = logging.getLogger(__name__)

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), INPUT)]),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1), OUTPUT)]),
)


def export_run(run_id: str) -> str:
    """Exports a run's model, checks it over the whole test set, and logs both; returns the logged model's URI.

    Raises UserError where the pictures have changed, ModelError where ONNX Runtime's answers are not PyTorch's (then
    nothing is logged but the finding), RegistryError where MLflow or its storage does not answer.
    """
    settings = tracking.run_settings(run_id)
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    tags = MlflowClient().get_run(run_id).data.tags
    if tags["data_fingerprint"] != data.fingerprint:
        raise UserError(f"the pictures of run {run_id} have changed since it was trained; train it again")
    with tempfile.TemporaryDirectory() as directory:
        path, quantization = Path(directory) / MODEL_FILE, "none"
        export_onnx(load_model(run_id), path)
        probabilities = _checked_against_pytorch(path, run_id, data)
        if settings.export.quantize == "int8":
            int8, int8_probabilities, kept = _quantized(path, run_id, data, probabilities)
            if kept:
                path, probabilities, quantization = int8, int8_probabilities, "int8"
        tracking.log_array(run_id, tracking.SERVED_PROBABILITIES_FILE, probabilities)
        metadata = Metadata(
            contract=CONTRACT,
            classes=data.classes,
            model_name=settings.model.name,
            mlflow_run_id=run_id,
            data_name=data.name,
            image_size=settings.model.image_size,
            mean=settings.model.mean,
            std=settings.model.std,
            interpolation=settings.model.interpolation,
            fit=settings.model.fit,
            crop_share=settings.model.crop_share,
            decode_shorter_side=settings.model.decoding.shorter_side,
            quantization=quantization,
            test=evaluate(probabilities, data.test, data.classes).metrics,
            **{name: tags[name] for name in ("git_commit", "git_dirty", "data_fingerprint")},
        )
        return _log_onnx(run_id, path, metadata)


def load_model(run_id: str) -> ImageClassifier:
    """The PyTorch model that a run trained, ready to answer."""
    classes = json.loads(tracking.artifact(run_id, tracking.CLASSES_FILE).read_text())
    model = build_model(tracking.run_settings(run_id).model, len(classes))
    model.load_state_dict(load_file(tracking.artifact(run_id, tracking.WEIGHTS_FILE)))
    return model.eval()


def _log_onnx(run_id: str, path: Path, metadata: Metadata) -> str:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata.properties())
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            model,
            name="onnx",
            signature=SIGNATURE,
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"],
            metadata=metadata.properties(),
            save_as_external_data=False,  # one file that is enough by itself
        )
    return str(logged.model_uri)


def _checked_against_pytorch(path: Path, run_id: str, data: ImageData) -> np.ndarray:
    """The file's probabilities of the test pictures, which are PyTorch's."""
    expected = np.load(tracking.artifact(run_id, tracking.PROBABILITIES_FILE))
    probabilities = predict(onnx_classify(path), data.test, "checking the ONNX file")
    found = parity(expected, probabilities)
    mlflow.log_metrics({f"parity_{name}": value for name, value in asdict(found).items()}, run_id=run_id)
    if not found.holds:
        raise ModelError(
            f"the ONNX file of run {run_id} does not match its PyTorch model: probabilities differ by up to "
            f"{found.max_difference:.1e}, {found.disagreements} pictures get another class. It is not registered."
        )
    log.info("ONNX agrees with PyTorch on %d pictures, within %.1e", len(data.test), found.max_difference)
    return probabilities


def _quantized(path: Path, run_id: str, data: ImageData, probabilities: np.ndarray) -> tuple[Path, np.ndarray, bool]:
    """The INT8 file beside `path`, its probabilities of the test pictures, and whether it is as good."""
    int8 = path.with_name(f"int8-{path.name}")
    quantize_int8(path, int8, data.train)
    classify = onnx_classify(int8)
    answers = predict(classify, data.test, "checking the INT8 file")
    before, after = (float((array.argmax(axis=1) == data.test.labels).mean()) for array in (probabilities, answers))
    ratio = speed_ratio(classify, onnx_classify(path), next(data.test.batches(BATCH_SIZE))[1])
    kept = before - after <= LARGEST_LOSS
    metrics = {"float32_test_accuracy": before, "int8_test_accuracy": after, "int8_speed_ratio": ratio}
    mlflow.log_metrics({**metrics, "int8_kept": kept}, run_id=run_id)
    verdict = "kept" if kept else f"rejected, since it loses more than {100 * LARGEST_LOSS:.1f} points of accuracy"
    log.info(
        f"INT8 is {verdict}: {after:.2%} of the test pictures are right, {before:.2%} in float32; "
        f"{ratio:.1f} times as fast"
    )
    return int8, answers, kept
