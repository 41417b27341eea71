from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient

from serving.model.contract import CONTRACT, MODEL_FILE
from serving.model.pictures.decoding import AS_SHOWN
from serving.model.predictor import Predictor
from tests.helpers.state import TINY, Trained
from training import tracking
from training.config import compose
from training.data.split import load_data
from training.quality.evaluation import predict, torch_classify
from training.release.candidate import export_run, load_model
from training.release.export import onnx_classify, parity
from training.train import train


def test_onnx_answers_as_pytorch_does_over_the_test_set(trained: Trained) -> None:
    settings = tracking.run_settings(trained.run_id)
    test = load_data(settings.data, settings.seed, settings.model.decoding).test
    expected = predict(torch_classify(load_model(trained.run_id)), test, "torch")
    found = parity(expected, predict(onnx_classify(trained.onnx), test, "onnx"))
    assert found.holds
    assert found.max_difference < 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 32, 32), (2, 300, 200), (1, 17, 500)])
def test_the_file_takes_any_batch_height_and_width(trained: Trained, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    probabilities = onnx_classify(trained.onnx)(images)
    assert probabilities.shape == (shape[0], 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    with torch.inference_mode():
        expected = torch_classify(load_model(trained.run_id))(images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_the_file_describes_itself(trained: Trained) -> None:
    graph = onnx.load(trained.onnx).graph
    assert [node.name for node in graph.input] == ["images"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.name for node in graph.output] == ["probabilities"]

    metadata = Predictor(trained.onnx).metadata
    settings = tracking.run_settings(trained.run_id)
    assert metadata.contract == CONTRACT
    assert metadata.classes == [str(digit) for digit in range(10)]
    assert (metadata.mean, metadata.std) == (settings.model.mean, settings.model.std)
    assert (metadata.image_size, metadata.interpolation) == (32, "bilinear")
    assert metadata.model_name == "efficientnet_lite0"
    assert metadata.mlflow_run_id == trained.run_id
    assert metadata.data_name == "digits"
    assert metadata.data_fingerprint == load_data(compose(["data=digits"]).data, 1, AS_SHOWN).fingerprint
    assert metadata.git_commit
    assert 0 < metadata.test["accuracy"] <= 1


def test_parity_tells_ties_from_disagreements() -> None:
    expected = np.array([[0.5, 0.5], [0.6, 0.4]], np.float32)
    tie = parity(expected, expected + np.array([[-1e-5, 1e-5], [0, 0]], np.float32))
    assert (tie.disagreements, tie.holds) == (0, True)
    swapped = parity(expected, expected[:, ::-1])
    assert (swapped.disagreements, swapped.holds) == (1, False)
    shifted = parity(expected, expected + np.array([[2e-3, -2e-3]], np.float32))
    assert (shifted.disagreements, shifted.holds) == (0, False)


@pytest.mark.slow
@pytest.mark.parametrize(("largest_loss", "kept"), [(1.0, True), (-1.0, False)])
def test_int8_is_kept_where_it_is_as_accurate(
    largest_loss: float, kept: bool, quantizable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("training.release.candidate.LARGEST_LOSS", largest_loss)
    file = Path(mlflow.artifacts.download_artifacts(export_run(quantizable), dst_path=str(tmp_path))) / MODEL_FILE
    metadata, metrics = Predictor(file).metadata, MlflowClient().get_run(quantizable).data.metrics
    accuracy = metrics["int8_test_accuracy" if kept else "float32_test_accuracy"]
    assert metadata.quantization == ("int8" if kept else "none")
    assert metadata.test["accuracy"] == accuracy
    assert metrics["int8_kept"] == kept
    assert metrics["int8_speed_ratio"] > 0
    # A weight takes one byte instead of four.
    weights = tracking.artifact(quantizable, tracking.WEIGHTS_FILE).stat().st_size
    assert (file.stat().st_size < weights / 2) is kept

    data = load_data(tracking.run_settings(quantizable).data, 42, AS_SHOWN)
    served = np.load(tracking.artifact(quantizable, tracking.SERVED_PROBABILITIES_FILE))
    np.testing.assert_allclose(predict(onnx_classify(file), data.test, "again"), served, atol=1e-5)


@pytest.fixture(scope="module")
def quantizable() -> str:
    return train(compose([*TINY, "trainer.epochs=1", "export.quantize=int8"]))
