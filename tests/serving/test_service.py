"""The running service, asked as a user asks it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Trained, assert_user_error, free_port
from training import tracking
from training.data import Pictures, load_data
from training.evaluation import torch_classify
from training.export import onnx_classify


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


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"files": {"image": b"hello"}}, 400, "not a picture"),
        ({"files": {"image": b""}}, 400, "not a picture"),
        ({"files": {"picture": b"hello"}}, 422, "image"),
        ({"data": {"image": "hello"}}, 422, "image"),
        ({"content": b"hello"}, 422, "image"),
        ({"files": {"image": bytes(11_000_000)}}, 413, "10000000"),
    ],
)
def test_bad_input_is_refused_with_a_reason(service: str, request_: dict, status: int, words: str) -> None:  # type: ignore[type-arg]
    response = httpx.post(f"{service}/classify", headers={"x-request-id": "my-id"}, **request_)
    assert response.status_code == status
    answer = response.json()
    assert set(answer) == {"code", "message", "request_id"}
    assert words in answer["message"]
    assert answer["request_id"] == response.headers["x-request-id"] == "my-id"


def test_health_and_metrics_are_there(service: str) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/docs.json"):
        assert httpx.get(service + path).status_code == 200


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
        ({"MLFLOW_TRACKING_URI": "sqlite:////no/such/mlflow.db"}, ["/no/such/mlflow.db", "make demo"]),
    ],
)
def test_a_service_that_can_not_start_says_why(
    trained: Trained, setting: dict[str, str], words: list[str], run_module: Callable[..., CompletedProcess[str]]
) -> None:
    assert_user_error(run_module("serving", SERVING_PORT=str(free_port()), **setting), *words)
