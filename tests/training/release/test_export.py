from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from serving.model.contract import CONTRACT, MODEL_FILE, Metadata
from serving.model.pictures.decoding import AS_SHOWN
from serving.model.precision import Precision
from serving.model.predictor import Predictor, file_for
from serving.model.runtime import CPU, OnnxRuntime, runtimes
from tests.helpers.state import TINY, Trained
from training import tracking
from training.config import compose
from training.data.split import load_data
from training.model.classifier import ImageClassifier, build_model
from training.quality.evaluation import predict, torch_classify
from training.release.candidate import export_run, load_model
from training.release.export import export_onnx, onnx_classify, parity
from training.release.quantization import convert_to_fp16, quantize_int8
from training.release.registry import register
from training.train import train


def test_onnx_answers_as_pytorch_does_over_the_test_set(trained: Trained) -> None:
    settings = tracking.run_settings(trained.run_id)
    test = load_data(settings.data, settings.seed, settings.model.decoding).test
    expected = predict(torch_classify(load_model(trained.run_id)), test, "torch", 32)
    found = parity(expected, predict(onnx_classify(trained.onnx), test, "onnx", 32))
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


def test_a_file_in_fp16_is_half_as_large_and_answers_alike(trained: Trained, tmp_path: Path) -> None:
    """On a CPU, which computes it more slowly; its answers are the same kind of thing on a GPU."""
    half = tmp_path / "model-fp16.onnx"
    convert_to_fp16(trained.onnx, half)
    settings = tracking.run_settings(trained.run_id)
    test = load_data(settings.data, settings.seed, settings.model.decoding).test
    exact, answers = (predict(onnx_classify(file), test, "onnx", 32) for file in (trained.onnx, half))
    assert answers.dtype == np.float32
    assert 1e-6 < np.abs(exact - answers).max() < 2e-2
    assert (exact.argmax(1) != answers.argmax(1)).mean() < 0.05  # a model that has hardly learnt has many near ties
    assert half.stat().st_size < 0.6 * trained.onnx.stat().st_size


def test_the_first_layers_can_stay_exact(trained: Trained, tmp_path: Path) -> None:
    settings = tracking.run_settings(trained.run_id)
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    exact = []
    for layers in (0, 3):
        quantize_int8(trained.onnx, tmp_path / "int8.onnx", data.train, 32, layers)
        convolutions = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "Conv"]
        exact.append(["DequantizeLinear" not in node.input[1] for node in convolutions])
    assert not any(exact[0])
    assert exact[1] == [True] * 3 + [False] * (len(exact[0]) - 3)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageClassifier, Path]:
    """A classifier that answers by a picture and its mirror image, its head with a hidden layer, and its file."""
    small = ["model=timm", "model.backbone=test_resnet", "model.weights=none", "model.head.hidden_sizes=[32]"]
    settings = compose([*TINY, *small, "model.flip_average=true", "data.horizontal_flip=0.5"])
    torch.manual_seed(0)
    model = build_model(settings.model, 10).eval()
    model.temperature.fill_(0.1)
    file = tmp_path_factory.mktemp("mirrored") / MODEL_FILE
    export_onnx(model, file)
    return model, file


def test_an_answer_is_the_mean_over_a_picture_and_its_mirror_image(mirrored: tuple[ImageClassifier, Path]) -> None:
    """Also of pictures that are cropped; in training a picture counts alone."""
    model, file = mirrored
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), np.uint8))
    with torch.inference_mode():
        alone, mirror = (model.backbone(model.preprocessing(views)) for views in (images, images.flip(2)))
        expected = (model.head((alone + mirror) / 2) / model.temperature).softmax(1).numpy()
        assert np.abs(model.head(alone).div(model.temperature).softmax(1).numpy() - expected).max() > 1e-3
        model.train()
        model.backbone.eval(), model.head.eval()
        torch.testing.assert_close(model(images), model.head(alone) / model.temperature)
        model.eval()
    answers = onnx_classify(file)
    np.testing.assert_allclose(answers(images.numpy()), expected, atol=1e-5)
    np.testing.assert_allclose(answers(images.flip(2).numpy()), expected, atol=1e-5)


def test_the_mean_over_mirror_images_is_taken_in_every_precision(
    mirrored: tuple[ImageClassifier, Path], tmp_path: Path
) -> None:
    """In a file that has each layer once, so that the first ones of INT8 are the first ones of all."""
    model, file = mirrored
    settings = compose(TINY)
    pictures = load_data(settings.data, settings.seed, AS_SHOWN).test
    images = next(iter(pictures.batches(64)))[1]
    exact = onnx_classify(file)(images)
    int8, half = file_for(file, "int8"), file_for(file, "fp16")
    quantize_int8(file, int8, pictures, 32)
    convert_to_fp16(file, half)
    convolutions = [node for node in onnx.load(int8).graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    ways: list[tuple[Path, Precision, str]] = [(half, "fp32", "onnxruntime")]
    ways += [(file, "bf16", name) for name in runtimes("bf16")] + [(int8, "int8", name) for name in runtimes("int8")]
    for path, precision, runtime in ways:
        classify = onnx_classify(path, precision, runtime)
        answers = classify(images)
        np.testing.assert_allclose(answers, exact, atol=0.05, err_msg=f"{path.name} in {runtime}")
        assert np.abs(answers - exact).max() > 1e-6
        mirrored_answers = classify(np.ascontiguousarray(images[:, :, ::-1]))
        assert np.abs(answers - mirrored_answers).mean() < 5e-4, f"{path.name} in {runtime}"


@pytest.mark.slow
@pytest.mark.parametrize(("largest_loss", "kept"), [(1.0, True), (-1.0, False)])
def test_a_precision_is_allowed_where_it_is_as_accurate(
    largest_loss: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses = [f"export.half_loss={largest_loss}", f"export.int8_loss={largest_loss}"]
    short = ["trainer.epochs=1", "trainer.freeze_backbone=true", "evaluation_batch_size=150"]
    monkeypatch.setattr("training.progress.SECONDS_BETWEEN_LINES", 0)
    caplog.set_level("INFO", "training")
    run_id = train(compose([*TINY, *short, "export.quantize=int8", *losses]))
    file = Path(mlflow.artifacts.download_artifacts(export_run(run_id), dst_path=str(tmp_path))) / MODEL_FILE
    int8 = file_for(file, "int8")
    assert int8.exists() is kept
    works = ["features: 3 of 3", "features: 1 of 1", "calibrating: 1 of 1", "evaluating: 2 of 2"]
    works += ["checking the ONNX file: 2 of 2", "finding the ranges of int8: 3 of 3"]
    works += [
        f"measuring {precision} in {name}: 2 of 2" for precision in ("bf16", "int8") for name in runtimes(precision)
    ]
    assert not [work for work in works if work not in caplog.text], "each in batches of 150, and saying how far it is"

    settings = tracking.run_settings(run_id)
    data = load_data(settings.data, settings.seed, AS_SHOWN)
    exact = predict(onnx_classify(file), data.test, "in float32", 32)
    np.testing.assert_allclose(exact, np.load(tracking.artifact(run_id, tracking.SERVED_PROBABILITIES_FILE)), atol=1e-5)
    measured = Metadata.from_properties(OnnxRuntime(file, (CPU,)).properties).measured
    assert {(said.precision, said.runtime) for said in measured} == {
        (precision, name) for precision in ("bf16", "int8") for name in runtimes(precision)
    }
    assert all(said.allowed is kept for said in measured)
    run, version = MlflowClient().get_run(run_id), register(run_id, logged_model(run_id), "precise")
    description = tracking.connect().get_model_version("precise", version).description
    for said in measured:
        assert run.data.metrics[f"{said.precision}_{said.runtime}_accuracy"] == said.accuracy
        assert f"{said.precision} in {said.runtime} {'is allowed' if kept else 'loses too much'}" in description
        if not kept:
            continue
        # What was measured is what it answers.
        answers = predict(
            onnx_classify(file_for(file, said.precision), said.precision, said.runtime), data.test, "again", 32
        )
        assert said.accuracy == (answers.argmax(1) == data.test.labels).mean()
        assert said.changed == (answers.argmax(1) != exact.argmax(1)).mean()
        assert said.largest_change == pytest.approx(np.abs(answers - exact).max(), abs=1e-6)
        assert said.largest_change > 0
    if kept:
        about = Metadata.from_properties(OnnxRuntime(int8, (CPU,)).properties)
        assert (about.precision, about.mlflow_run_id) == ("int8", run_id)
        in_int8 = [said for said in measured if said.precision == "int8"]
        assert about.test["accuracy"] == in_int8[0].accuracy
        # A weight takes one byte instead of four.
        assert int8.stat().st_size < file.stat().st_size / 2


def logged_model(run_id: str) -> str:
    (output,) = MlflowClient().get_run(run_id).outputs.model_outputs
    return f"models:/{output.model_id}"
