import json
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient

from tests.conftest import TINY, Trained
from training import tracking
from training.config import compose_config
from training.data import load_data
from training.evaluation import predict, torch_classify
from training.export import MODEL_FILE, compare, export_run, onnx_classify, onnx_metadata
from training.train import train


def test_onnx_answers_as_pytorch_does_over_the_test_set(trained: Trained) -> None:
    config = tracking.run_config(trained.run_id)
    test = load_data(config.data, config.seed).test
    expected = predict(torch_classify(tracking.load_model(trained.run_id)), test, "torch")
    parity = compare(expected, predict(onnx_classify(trained.onnx), test, "onnx"))
    assert parity.holds
    assert parity.max_difference < 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 32, 32), (2, 300, 200), (1, 17, 500)])
def test_the_file_takes_any_batch_height_and_width(trained: Trained, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    probabilities = onnx_classify(trained.onnx)(images)
    assert probabilities.shape == (shape[0], 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    with torch.inference_mode():
        expected = torch_classify(tracking.load_model(trained.run_id))(images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_the_file_describes_itself(trained: Trained) -> None:
    graph = onnx.load(trained.onnx).graph
    assert [node.name for node in graph.input] == ["images"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.name for node in graph.output] == ["probabilities"]

    metadata = onnx_metadata(trained.onnx)
    config = tracking.run_config(trained.run_id)
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(metadata["mean"]) == list(config.model.mean)
    assert json.loads(metadata["std"]) == list(config.model.std)
    assert metadata["image_size"] == "32"
    assert metadata["interpolation"] == "bilinear"
    assert metadata["model_name"] == "efficientnet_lite0"
    assert metadata["mlflow_run_id"] == trained.run_id
    assert metadata["data_name"] == "digits"
    assert metadata["data_fingerprint"] == load_data(compose_config(["data=digits"]).data, 1).fingerprint
    assert metadata["git_commit"]
    assert 0 < float(metadata["test_accuracy"]) <= 1


def test_parity_tells_ties_from_disagreements() -> None:
    expected = np.array([[0.5, 0.5], [0.6, 0.4]], np.float32)
    tie = compare(expected, expected + np.array([[-1e-5, 1e-5], [0, 0]], np.float32))
    assert (tie.disagreements, tie.holds) == (0, True)
    swapped = compare(expected, expected[:, ::-1])
    assert (swapped.disagreements, swapped.holds) == (1, False)
    shifted = compare(expected, expected + np.array([[2e-3, -2e-3]], np.float32))
    assert (shifted.disagreements, shifted.holds) == (0, False)


@pytest.mark.parametrize(("largest_loss", "kept"), [(1.0, True), (-1.0, False)])
def test_int8_is_kept_where_it_is_as_accurate(
    largest_loss: float, kept: bool, quantizable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("training.export.LARGEST_LOSS", largest_loss)
    file = Path(mlflow.artifacts.download_artifacts(export_run(quantizable), dst_path=str(tmp_path))) / MODEL_FILE
    metadata, metrics = onnx_metadata(file), MlflowClient().get_run(quantizable).data.metrics
    accuracy = metrics["int8_test_accuracy" if kept else "float32_test_accuracy"]
    assert metadata["quantization"] == ("int8" if kept else "none")
    assert float(metadata["test_accuracy"]) == accuracy
    assert metrics["int8_kept"] == kept
    assert metrics["int8_speed_ratio"] > 0
    # A weight takes one byte instead of four.
    weights = tracking.artifact(quantizable, tracking.WEIGHTS_FILE).stat().st_size
    assert (file.stat().st_size < weights / 2) is kept

    data = load_data(tracking.run_config(quantizable).data, 42)
    served = np.load(tracking.artifact(quantizable, tracking.SERVED_PROBABILITIES_FILE))
    np.testing.assert_allclose(predict(onnx_classify(file), data.test, "again"), served, atol=1e-5)


@pytest.fixture(scope="module")
def quantizable() -> str:
    return train(compose_config([*TINY, "trainer.epochs=1", "export.quantize=int8"]))
