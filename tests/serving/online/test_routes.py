"""What the service answers, asked as a user asks it."""

import gzip
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.helpers.answers import assert_same_answers
from tests.helpers.pictures import encoded, png
from tests.helpers.service import metric
from tests.helpers.state import Trained


def test_the_same_answer_online_in_onnx_and_in_pytorch(service: str, trained: Trained, tmp_path: Path) -> None:
    assert assert_same_answers(service, trained.run_id, trained.onnx, tmp_path) == 100


def test_curl_gets_one_object_that_names_its_model(service: str, trained: Trained, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.jpg")
    command = ["curl", "--silent", "--form", f"image=@{tmp_path / 'red.jpg'}", f"{service}/classify"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(answer) == {"label", "confidence", "probabilities", "model", "request_id"}
    model = {"name": "efficientnet_lite0", "version": trained.version, "run_id": trained.run_id, "data": "digits"}
    assert answer["model"] == {**model, "precision": "fp32"}


def test_the_likeliest_classes_come_first(client: httpx.Client) -> None:
    files = {"image": png()}
    every = client.post("/classify", files=files).json()
    likeliest = list(every["probabilities"].items())
    assert sum(every["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert likeliest == sorted(likeliest, key=lambda item: -item[1])
    assert (every["label"], every["confidence"]) == likeliest[0]
    three = client.post("/classify?top_k=3", files=files).json()
    assert list(three["probabilities"].items()) == likeliest[:3]
    assert client.post("/classify?top_k=1000", files=files).json()["probabilities"] == every["probabilities"]


def test_a_batch_answers_in_order_and_leaves_broken_pictures_out(client: httpx.Client) -> None:
    pictures = [png(seed=0), b"hello", png(20, 70, seed=1), png(seed=2)[:200], png(seed=3)]
    answer = client.post("/classify_batch", files=[("images", picture) for picture in pictures]).json()
    assert answer["model"]["name"] == "efficientnet_lite0"
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes == [None, "not_a_picture", None, "broken_picture", None]
    for index in (0, 2, 4):
        alone = client.post("/classify", files={"image": pictures[index]}).json()
        assert answer["results"][index]["label"] == alone["label"]
        assert answer["results"][index]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)


def test_the_model_describes_itself(client: httpx.Client, trained: Trained) -> None:
    model = client.get("/model").raise_for_status().json()
    assert (model["version"], model["run_id"]) == (trained.version, trained.run_id)
    assert model["classes"] == [str(digit) for digit in range(10)]
    assert 0 <= model["metrics"]["test_accuracy"] <= 1
    assert model["metadata"]["image_size"] == "32"
    assert model["providers"] == ["CPUExecutionProvider"]
    assert datetime.fromisoformat(model["loaded_at"]) < datetime.now(UTC)


PNG = {"headers": {"content-type": "image/png"}}
FORM = "multipart/form-data"
PICKLE = "application/vnd.bentoml+pickle"
GZIP = {"content-type": "image/png", "content-encoding": "gzip"}
HUGE = encoded(Image.new("1", (10_000, 10_000)), "PNG")  # 100 million pixels in a few kilobytes


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "words"),
    [
        ("POST", "/classify", {"files": {"image": b"hello"}}, 400, "not a picture"),
        ("POST", "/classify", {"files": {"image": b""}}, 400, "The file is empty"),
        ("POST", "/classify", {"content": png()[:100], **PNG}, 400, "broken"),
        ("POST", "/classify", {"files": {"picture": b"hello"}}, 422, "field image; the form's fields are: picture"),
        ("POST", "/classify", {"files": {"image": b""}, "data": {"image": "hello"}}, 422, "/classify_batch"),
        ("POST", "/classify", {"files": {"image": png()}, "data": {"top_k": "many"}}, 422, "top_k=many"),
        ("POST", "/classify", {"json": {"image": "", "top_k": 0}}, 422, "greater than or equal to 1"),
        ("POST", "/classify", {"content": b"--x", "headers": {"content-type": FORM}}, 400, "form is broken"),
        ("POST", "/classify", {"content": b"x", "headers": {"content-type": PICKLE}}, 415, "Pickles"),
        ("POST", "/classify", {"content": gzip.compress(png()), "headers": GZIP}, 415, "content encoding gzip"),
        ("POST", "/classify", {"files": [("image", png()), ("image", png())]}, 422, "/classify_batch"),
        ("POST", "/classify", {"json": {"picture": "hello"}}, 422, "base64"),
        ("POST", "/classify", {"json": {"image": "?!"}}, 422, "base64"),
        ("POST", "/classify?top_k=0", {"content": png(), **PNG}, 422, "top_k"),
        ("POST", "/classify", {"content": b"hello"}, 415, "multipart/form-data"),
        (
            "POST",
            "/classify",
            {"content": b"<svg/>", "headers": {"content-type": "image/svg+xml"}},
            415,
            "image/svg+xml",
        ),
        ("POST", "/classify", {"files": {"image": bytes(33_000_000)}}, 413, "32000000"),
        ("POST", "/classify", {"content": iter([bytes(16_000_001)] * 2), **PNG}, 413, "32000000"),
        ("POST", "/classify", {"content": HUGE, **PNG}, 413, "50000000"),
        ("POST", "/classify_batch", {"files": [("images", b"hello")] * 65}, 413, "64"),
        ("POST", "/classify_batch", {"files": {"image": png()}}, 422, "field images"),
        ("POST", "/classify_batch", {"content": png(), **PNG}, 415, "multipart/form-data"),
        ("GET", "/classify", {}, 405, "GET /classify"),
        ("GET", "/nothing", {}, 404, "GET /nothing"),
        ("POST", "/livez", {}, 404, "POST /livez"),
    ],
)
def test_bad_input_is_refused_with_a_reason(
    client: httpx.Client,
    method: str,
    path: str,
    request_: dict,  # type: ignore[type-arg]
    status: int,
    words: str,
) -> None:
    headers = {"x-request-id": "my-id", **request_.get("headers", {})}
    response = client.request(method, path, **{**request_, "headers": headers})
    assert response.status_code == status
    answer = response.json()
    assert set(answer) == {"code", "message", "request_id"}
    assert words in answer["message"]
    assert answer["request_id"] == response.headers["x-request-id"] == "my-id"
    assert metric(client, "classifier_refusals_total", code=answer["code"]) > 0


def test_prometheus_learns_what_was_answered(client: httpx.Client) -> None:
    label = client.post("/classify", files={"image": png()}).json()["label"]

    def counts() -> list[float]:
        return [
            metric(client, "classifier_predictions_total", label=label),
            metric(client, "classifier_confidence_count"),
            metric(client, "classifier_requests_total", route="/classify", status="200"),
            metric(client, "classifier_request_seconds_count", route="/classify"),
            metric(client, "classifier_batch_size_sum"),
        ]

    before = counts()
    client.post("/classify", files={"image": png()}).raise_for_status()
    assert counts() == [count + 1 for count in before]
    assert metric(client, "classifier_queue_length") == 0


def test_prometheus_learns_which_model_answers_and_what_it_takes(service: str, trained: Trained) -> None:
    assert metric(service, "classifier_model_info", version=trained.version, run_id=trained.run_id) == 1
    httpx.post(f"{service}/classify", files={"image": png()}).raise_for_status()
    for stage in ("queue", "decode", "model"):
        assert metric(service, f"classifier_{stage}_seconds_count") > 0
    assert 50e6 < metric(service, "process_resident_memory_bytes") < 2e9


def test_paths_that_nobody_serves_are_counted_together(client: httpx.Client) -> None:
    pages = metric(client, "classifier_requests_total", route="/ui", status="200")
    client.get("/ui/")
    client.get("/one/of/many/paths")
    assert metric(client, "classifier_requests_total", route="/ui", status="200") == pages + 1
    assert metric(client, "classifier_requests_total", route="other", status="404") > 0
    assert "many/paths" not in client.get("/metrics").text


def test_health_metrics_and_the_api_are_there(service: str) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/docs.json"):
        assert httpx.get(service + path).status_code == 200
    assert metric(service, "classifier_requests_total", route="/livez", status="200") > 0


def test_the_api_is_documented_with_examples(client: httpx.Client) -> None:
    document = client.get("/docs.json").json()
    assert set(document["paths"]) == {"/classify", "/classify_batch", "/model", "/metrics"}
    classify = document["paths"]["/classify"]["post"]
    assert {"multipart/form-data", "application/json", "image/png"} <= set(classify["requestBody"]["content"])
    assert {"400", "401", "413", "415", "422", "429", "503"} <= set(classify["responses"])
    for name in ("Classification", "Classifications", "ModelInfo", "Error"):
        schema = document["components"]["schemas"][name]
        assert set(schema["required"]) == set(schema["example"])
