"""A finished run as a candidate for the registry: exported, checked over the whole test set, described."""

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from PIL import Image
from safetensors.torch import load_file

from serving.model.contract import CONTRACT, INPUT, MODEL_FILE, OUTPUT, Measured, Metadata
from serving.model.errors import ModelError, UserError
from serving.model.precision import Precision
from serving.model.predictor import file_for
from serving.model.registry import named_error
from serving.model.runtime import obstacle, providers_for, runtimes
from training import tracking
from training.data.pictures import Pictures
from training.data.split import ImageData, load_data
from training.model.classifier import ImageClassifier, build_model
from training.quality.evaluation import evaluate, predict
from training.quality.report import log_report
from training.release.description import PRECISIONS
from training.release.export import export_onnx, onnx_classify, parity
from training.release.quantization import FIRST_LAYERS, convert_to_fp16, quantize_int8, speed_ratio
from training.settings import TrainSettings

log = logging.getLogger(__name__)

WHOLE = "whole"  # the tag of a logged model that has all its files
SPEED_PICTURES = 32  # that a precision's speed is measured with, on a CPU too

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
        path = Path(directory) / MODEL_FILE
        export_onnx(load_model(run_id), path)
        exact = _checked_against_pytorch(path, run_id, data, settings.evaluation_batch_size)
        tracking.log_array(run_id, tracking.SERVED_PROBABILITIES_FILE, exact)
        measured, others = _other_precisions(path, exact, data, settings)
        files = {path: exact, **others}
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
            measured=measured,
            **{name: tags[name] for name in ("git_commit", "git_dirty", "data_fingerprint")},
        )
        for file, probabilities in files.items():
            own = {"precision": "fp32" if file == path else file.stem.rpartition("-")[2]}
            test = evaluate(probabilities, data.test, data.classes).metrics
            _describe(file, metadata.model_copy(update={**own, "test": test}))
        _tell(run_id, measured, accuracy_of(exact, data.test))
        trained = evaluate(np.load(tracking.artifact(run_id, tracking.PROBABILITIES_FILE)), data.test, data.classes)
        log_report(run_id, settings, data, trained, measured)
        return _log_onnx(run_id, list(files), _example(data))


def _other_precisions(
    path: Path, exact: np.ndarray, data: ImageData, settings: TrainSettings
) -> tuple[list[Measured], dict[Path, np.ndarray]]:
    """What a version costs and gains in other precisions than float32, and its files for them.

    The files are those that are allowed, each with its probabilities of the test pictures in its quickest runtime.
    """
    export, batch_size = settings.export, settings.evaluation_batch_size
    measured = [said for said, _ in measure(path, path, "bf16", exact, data, export.half_loss, batch_size)]
    files = {}
    ways: dict[Precision, tuple[float, list[Callable[[Path], None]]]] = {}
    if export.quantize == "int8" and (reason := obstacle("int8", "onnxruntime")):
        log.warning("there is no file in int8: %s", reason)
    elif export.quantize == "int8":
        layers = (0, FIRST_LAYERS)  # that stay in float32: none, if that is good enough
        quantize = partial(quantize_int8, path, pictures=data.train, batch_size=batch_size)
        ways["int8"] = export.int8_loss, [partial(quantize, exact_layers=number) for number in layers]
    if runtimes("fp16"):
        ways["fp16"] = export.half_loss, [partial(convert_to_fp16, path)]
    for precision, (largest_loss, writers) in ways.items():
        file = file_for(path, precision)
        found: list[tuple[Measured, np.ndarray]] = []
        for write_to in writers:
            try:
                write_to(file)
                found = measure(path, file, precision, exact, data, largest_loss, batch_size)
            except Exception:  # a layer that it does not know, say: the version is as good without it
                log.exception("there is no file in %s", precision)
                break
            if allowed := [probabilities for said, probabilities in found if said.allowed]:
                files[file] = allowed[0]
                break
        measured += [said for said, _ in found]
    return measured, files


def exported(run_id: str) -> str | None:
    """The URI of the model that `export_run` has logged with a run already, whole and still there."""
    client = tracking.connect()
    try:
        experiment = client.get_run(run_id).info.experiment_id
        found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND tags.{WHOLE} = 'true'")
    except Exception as error:
        raise named_error(error, f"run {run_id}") from error
    return str(found[0].model_uri) if found else None


def _describe(file: Path, metadata: Metadata) -> None:
    model = onnx.load(file)
    onnx.helper.set_model_props(model, metadata.properties())
    onnx.save(model, file)


def load_model(run_id: str) -> ImageClassifier:
    """The PyTorch model that a run trained, ready to answer."""
    classes = json.loads(tracking.artifact(run_id, tracking.CLASSES_FILE).read_text())
    model = build_model(tracking.run_settings(run_id).model, len(classes))
    model.load_state_dict(load_file(tracking.artifact(run_id, tracking.WEIGHTS_FILE)))
    return model.eval()


def _example(data: ImageData) -> np.ndarray:
    """A test picture, uint8 (1, H, W, 3): a small one, since MLflow keeps it as text."""
    picture = Image.fromarray(data.test[0])
    picture.thumbnail((64, 64))
    return np.asarray(picture)[None]


def _log_onnx(run_id: str, files: list[Path], example: np.ndarray) -> str:
    """Logs the file of float32, which comes first, as a model, and those of other precisions beside it."""
    path, *others = files
    model = onnx.load(path)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            model,
            name="onnx",
            signature=SIGNATURE,
            input_example=example,
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"],
            metadata={each.key: each.value for each in model.metadata_props},
            save_as_external_data=False,  # one file that is enough by itself
        )
        for other in others:
            MlflowClient().log_model_artifact(logged.model_id, str(other))
    MlflowClient().set_logged_model_tags(logged.model_id, {WHOLE: "true"})
    return str(logged.model_uri)


def _checked_against_pytorch(path: Path, run_id: str, data: ImageData, batch_size: int) -> np.ndarray:
    """The file's probabilities of the test pictures, which are PyTorch's."""
    expected = np.load(tracking.artifact(run_id, tracking.PROBABILITIES_FILE))
    probabilities = predict(onnx_classify(path), data.test, "checking the ONNX file", batch_size)
    found = parity(expected, probabilities)
    mlflow.log_metrics({f"parity_{name}": value for name, value in asdict(found).items()}, run_id=run_id)
    if not found.holds:
        raise ModelError(
            f"the ONNX file of run {run_id} does not match its PyTorch model: probabilities differ by up to "
            f"{found.max_difference:.1e}, {found.disagreements} pictures get another class. It is not registered."
        )
    log.info("ONNX agrees with PyTorch on %d pictures, within %.1e", len(data.test), found.max_difference)
    return probabilities


def measure(
    exact_file: Path,
    file: Path,
    precision: Precision,
    exact: np.ndarray,
    data: ImageData,
    largest_loss: float,
    batch_size: int,
) -> list[tuple[Measured, np.ndarray]]:
    """What a precision does over the whole test set, in each runtime here that has it, with its probabilities.

    `exact`: the probabilities of `exact_file` in float32. What a runtime can't do is not measured, and so not allowed.
    """
    found = []
    images = next(iter(data.test.batches(SPEED_PICTURES)))[1]
    providers = providers_for(precision)
    exact_classify = onnx_classify(exact_file, providers=providers)
    before = accuracy_of(exact, data.test)
    for runtime in runtimes(precision):
        try:
            classify = onnx_classify(file, precision, runtime, providers)
            probabilities = predict(classify, data.test, f"measuring {precision} in {runtime}", batch_size)
        except Exception as error:  # an operation that it does not have, say: float32 answers without it
            log.warning("%s can't run in %s: %s", precision, runtime, " ".join(str(error).split())[:200])
            continue
        after = accuracy_of(probabilities, data.test)
        said = Measured(
            precision=precision,
            runtime=runtime,
            accuracy=after,
            changed=float((exact.argmax(1) != probabilities.argmax(1)).mean()),
            largest_change=float(np.abs(exact - probabilities).max()),
            speed=round(speed_ratio(classify, exact_classify, images), 2),
            allowed=round(before - after, 9) <= largest_loss,
        )
        log.info("%s", _sentence(said, before))
        found.append((said, probabilities))
    return found


def accuracy_of(probabilities: np.ndarray, pictures: Pictures) -> float:
    """The share of the pictures whose likeliest class is right."""
    return float((probabilities.argmax(axis=1) == pictures.labels).mean())


def _sentence(said: Measured, before: float) -> str:
    """A sentence about a precision; `before`: the accuracy in float32."""
    verdict = "is allowed" if said.allowed else "loses too much and is not allowed"
    return (
        f"{said.precision} in {said.runtime} {verdict}: {said.accuracy:.2%} of the test pictures are right, "
        f"{before:.2%} in fp32; {said.changed:.2%} get another class, a probability changes by up to "
        f"{said.largest_change:.1e}; "
        f"{said.speed:.1f} times as fast"
    )


def _tell(run_id: str, measured: Sequence[Measured], before: float) -> None:
    """Logs what each precision costs and gains as metrics of the run, and in words for its version's description."""
    for said in measured:
        values = said.model_dump(exclude={"precision", "runtime"})
        mlflow.log_metrics({f"{said.precision}_{said.runtime}_{name}": v for name, v in values.items()}, run_id=run_id)
    MlflowClient().set_tag(run_id, PRECISIONS, ".\n".join(_sentence(said, before) for said in measured))
