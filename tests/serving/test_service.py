"""The running service, asked as a user asks it."""

import base64
import io
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Trained, assert_user_error, free_port
from tests.serving.conftest import metric, png
from training import tracking
from training.data import Pictures, load_data
from training.evaluation import torch_classify
from training.export import onnx_classify


def huge_png() -> bytes:
    """100 million pixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def ten_of_each_class(pictures: Pictures) -> list[int]:
    return [index for label in np.unique(pictures.labels) for index in np.flatnonzero(pictures.labels == label)[:10]]


def assert_same_answers(url: str, run_id: str, onnx: Path, folder: Path) -> int:
    """Ten test pictures of each class: the service, the ONNX file and the PyTorch model say the same."""
    config = tracking.run_config(run_id)
    data = load_data(config.data, config.seed)
    in_pytorch, in_onnx = torch_classify(tracking.load_model(run_id)), onnx_classify(onnx)
    chosen = ten_of_each_class(data.test)
    for index in chosen:
        path = folder / f"{index}.png"
        Image.fromarray(data.test[index]).save(path)
        answer = httpx.post(f"{url}/classify", files={"image": path.read_bytes()}).raise_for_status().json()
        served = np.array([answer["probabilities"][name] for name in data.classes])
        np.testing.assert_allclose(served, in_onnx(data.test[index][None])[0], atol=1e-6)
        np.testing.assert_allclose(served, in_pytorch(data.test[index][None])[0], atol=1e-3)
        assert answer["label"] == data.classes[served.argmax()]
        assert answer["confidence"] == served.max()
        assert answer["model"]["run_id"] == run_id
    return len(chosen)


def test_the_same_answer_online_in_onnx_and_in_pytorch(service: str, trained: Trained, tmp_path: Path) -> None:
    assert assert_same_answers(service, trained.run_id, trained.onnx, tmp_path) == 100


def test_curl_gets_one_object_that_names_its_model(service: str, trained: Trained, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.jpg")
    command = ["curl", "--silent", "--form", f"image=@{tmp_path / 'red.jpg'}", f"{service}/classify"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(answer) == {"label", "confidence", "probabilities", "model", "request_id"}
    assert answer["model"] == {
        "name": "efficientnet_lite0",
        "version": trained.version,
        "run_id": trained.run_id,
        "data": "digits",
    }


def test_a_picture_can_be_sent_in_each_way(service: str) -> None:
    picture = png(50, 40)
    url = f"{service}/classify"
    as_form = httpx.post(url, files={"image": picture}).raise_for_status().json()
    as_body = httpx.post(url, content=picture, headers={"content-type": "image/png"}).raise_for_status().json()
    as_json = httpx.post(url, json={"image": base64.b64encode(picture).decode()}).raise_for_status().json()
    assert as_form["probabilities"] == as_body["probabilities"] == as_json["probabilities"]


def test_the_likeliest_classes_come_first(service: str) -> None:
    files = {"image": png()}
    every = httpx.post(f"{service}/classify", files=files).json()
    likeliest = list(every["probabilities"].items())
    assert sum(every["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert likeliest == sorted(likeliest, key=lambda item: -item[1])
    assert (every["label"], every["confidence"]) == likeliest[0]
    three = httpx.post(f"{service}/classify?top_k=3", files=files).json()
    assert list(three["probabilities"].items()) == likeliest[:3]
    many = httpx.post(f"{service}/classify?top_k=1000", files=files).json()
    assert many["probabilities"] == every["probabilities"]


def test_a_batch_answers_in_order_and_leaves_broken_pictures_out(service: str) -> None:
    pictures = [png(seed=0), b"hello", png(20, 70, seed=1), png(seed=2)[:200], png(seed=3)]
    answer = httpx.post(f"{service}/classify_batch", files=[("images", picture) for picture in pictures]).json()
    assert answer["model"]["name"] == "efficientnet_lite0"
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes == [None, "not_a_picture", None, "broken_picture", None]
    for index in (0, 2, 4):
        alone = httpx.post(f"{service}/classify", files={"image": pictures[index]}).json()
        assert answer["results"][index]["label"] == alone["label"]
        assert answer["results"][index]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)


def test_the_model_describes_itself(service: str, trained: Trained) -> None:
    model = httpx.get(f"{service}/model").raise_for_status().json()
    assert model["version"] == trained.version
    assert model["run_id"] == trained.run_id
    assert model["classes"] == [str(digit) for digit in range(10)]
    assert 0 <= model["metrics"]["test_accuracy"] <= 1
    assert model["metadata"]["image_size"] == "32"
    assert model["providers"] == ["CPUExecutionProvider"]
    assert datetime.fromisoformat(model["loaded_at"]) < datetime.now(UTC)


PNG = {"headers": {"content-type": "image/png"}}


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "words"),
    [
        ("POST", "/classify", {"files": {"image": b"hello"}}, 400, "not a picture"),
        ("POST", "/classify", {"files": {"image": b""}}, 400, "not a picture"),
        ("POST", "/classify", {"content": png()[:100], **PNG}, 400, "broken"),
        ("POST", "/classify", {"files": {"picture": b"hello"}}, 422, "field image; the form's fields are: picture"),
        ("POST", "/classify", {"files": {"image": b""}, "data": {"image": "hello"}}, 422, "image"),
        ("POST", "/classify", {"files": [("image", png()), ("image", png())]}, 422, "/classify_batch"),
        ("POST", "/classify", {"json": {"picture": "hello"}}, 422, "base64"),
        ("POST", "/classify", {"json": {"image": "?!"}}, 422, "base64"),
        ("POST", "/classify?top_k=0", {"content": png(), **PNG}, 422, "top_k"),
        ("POST", "/classify", {"content": b"hello"}, 415, "multipart/form-data"),
        ("POST", "/classify", {"content": b"II", "headers": {"content-type": "image/tiff"}}, 415, "image/tiff"),
        ("POST", "/classify", {"files": {"image": bytes(33_000_000)}}, 413, "32000000"),
        ("POST", "/classify", {"content": iter([bytes(16_000_001)] * 2), **PNG}, 413, "32000000"),
        ("POST", "/classify", {"content": huge_png(), **PNG}, 413, "50000000"),
        ("POST", "/classify_batch", {"files": [("images", b"hello")] * 65}, 413, "64"),
        ("POST", "/classify_batch", {"files": {"image": png()}}, 422, "field images"),
        ("POST", "/classify_batch", {"content": png(), **PNG}, 415, "multipart/form-data"),
        ("GET", "/classify", {}, 405, "GET /classify"),
        ("GET", "/nothing", {}, 404, "GET /nothing"),
        ("POST", "/livez", {}, 404, "POST /livez"),
    ],
)
def test_bad_input_is_refused_with_a_reason(
    service: str,
    method: str,
    path: str,
    request_: dict,  # type: ignore[type-arg]
    status: int,
    words: str,
) -> None:
    request = httpx.Request(method, service + path, **request_)
    request.headers["x-request-id"] = "my-id"
    with httpx.Client() as client:
        response = client.send(request)
    assert response.status_code == status
    answer = response.json()
    assert set(answer) == {"code", "message", "request_id"}
    assert words in answer["message"]
    assert answer["request_id"] == response.headers["x-request-id"] == "my-id"
    assert metric(service, "classifier_refusals_total", code=answer["code"]) > 0


def test_prometheus_learns_what_was_answered(service: str, trained: Trained) -> None:
    url = f"{service}/classify"
    label = httpx.post(url, files={"image": png()}).json()["label"]

    def counts() -> list[float]:
        return [
            metric(service, "classifier_predictions_total", label=label),
            metric(service, "classifier_confidence_count"),
            metric(service, "classifier_requests_total", route="/classify", status="200"),
            metric(service, "classifier_request_seconds_count", route="/classify"),
            metric(service, "classifier_batch_size_sum"),
        ]

    before = counts()
    httpx.post(url, files={"image": png()}).raise_for_status()
    assert counts() == [count + 1 for count in before]
    assert metric(service, "classifier_queue_length") == 0
    assert metric(service, "classifier_model_info", version=trained.version, run_id=trained.run_id) == 1
    httpx.get(f"{service}/one/of/many/paths")
    assert metric(service, "classifier_requests_total", route="other", status="404") > 0
    assert "many/paths" not in httpx.get(f"{service}/metrics").text


def test_health_and_metrics_are_there(service: str) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/docs.json"):
        assert httpx.get(service + path).status_code == 200


def test_the_api_is_documented_with_examples(service: str) -> None:
    document = httpx.get(f"{service}/docs.json").json()
    assert set(document["paths"]) == {"/classify", "/classify_batch", "/model", "/metrics"}
    classify = document["paths"]["/classify"]["post"]
    assert {"multipart/form-data", "application/json", "image/png"} <= set(classify["requestBody"]["content"])
    assert {"400", "401", "413", "415", "422", "429", "503"} <= set(classify["responses"])
    for name in ("Classification", "Classifications", "ModelInfo", "Error"):
        (example,) = document["components"]["schemas"][name]["examples"]
        assert set(document["components"]["schemas"][name]["required"]) == set(example)


def test_a_port_in_use_ends_with_code_2(service: str, run_module: Callable[..., CompletedProcess[str]]) -> None:
    port = service.rpartition(":")[2]
    assert_user_error(run_module("serving", SERVING_PORT=port), f"127.0.0.1:{port}", "PORT=")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"SERVING_MODEL": "models:/nobody@champion"}, ["models:/nobody@champion", "not in the registry"]),
        ({"SERVING_MODEL": "models:/cifar10-classifier/99"}, ["models:/cifar10-classifier/99", "not in the registry"]),
        ({"SERVING_MODEL": "no/such.onnx"}, ["no/such.onnx"]),
        ({"SERVING_MAX_PIXELS": "many"}, ["SERVING_MAX_PIXELS"]),
        ({"SERVING_MAX_PICTURES": "200"}, ["max_pictures=200", "max_queue=128"]),
        (
            {"MLFLOW_TRACKING_URI": "sqlite:////no/such/mlflow.db", "STATE_DIR": "/no/such/state"},
            ["/no/such/mlflow.db", "make demo"],
        ),
    ],
)
def test_a_service_that_can_not_start_says_why(
    trained: Trained, setting: dict[str, str], words: list[str], run_module: Callable[..., CompletedProcess[str]]
) -> None:
    assert_user_error(run_module("serving", SERVING_PORT=str(free_port()), **setting), *words)
