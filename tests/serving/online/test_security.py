"""Who may ask, and what an answer gives away."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import onnx
import pytest

from tests.helpers.pictures import png
from tests.helpers.service import InProcess, Serve, Served, edit_onnx, metric
from tests.helpers.state import Trained
from tests.helpers.waiting import wait_until


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> Iterator[Served]:
    """In a process of its own: BentoML's routes are guarded too."""
    with serve(SERVING_TOKENS="first-secret, second-secret", SERVING_CORS_ORIGINS="https://pictures.example") as served:
        yield served


def ask(url: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/classify", files={"image": png()}, headers=headers)


@pytest.mark.parametrize("token", ["first-secret", "second-secret"])
def test_each_token_lets_in(guarded: Served, token: str) -> None:
    assert ask(guarded.url, authorization=f"Bearer {token}").status_code == 200


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer first", "Basic first-secret", "first-secret", "Bearer \xe9"]
)
def test_without_a_token_nobody_is_answered(guarded: Served, authorization: str) -> None:
    headers = [("authorization", authorization.encode("latin-1"))] if authorization else []
    for method, path in (
        ("POST", "/classify"),
        ("POST", "/classify_batch"),
        ("GET", "/model"),
        ("GET", "/schema.json"),
    ):
        response = httpx.request(method, guarded.url + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["code"] == "unauthorized"
        assert "secret" not in response.text


def test_health_metrics_and_the_page_need_no_token(guarded: Served) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/ui/"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_the_public_paths_can_be_chosen(in_process: InProcess) -> None:
    with in_process(tokens="secret", public_paths="/readyz") as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"authorization": "Bearer secret"}).status_code == 200


def test_the_api_document_names_the_token(in_process: InProcess, client: httpx.Client) -> None:
    schemes = {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    with in_process(tokens="secret") as guarded:
        document = guarded.get("/docs.json", headers={"authorization": "Bearer secret"}).json()
    assert document["components"]["securitySchemes"] == schemes
    assert "securitySchemes" not in client.get("/docs.json").json()["components"]


def test_other_origins_are_let_in_only_by_name(guarded: Served, service: str) -> None:
    origin = {"origin": "https://pictures.example"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = httpx.options(f"{guarded.url}/classify", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://pictures.example"
    # The page of another origin can read why it is refused.
    assert ask(guarded.url, **origin).headers["access-control-allow-origin"] == "https://pictures.example"
    stranger = httpx.options(f"{guarded.url}/classify", headers={**preflight, "origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in stranger.headers
    assert "access-control-allow-origin" not in ask(service, **origin).headers


def test_answers_carry_security_headers_and_an_id(service: str) -> None:
    for response in (ask(service), httpx.get(f"{service}/nothing"), httpx.get(f"{service}/livez")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert len(response.headers["x-request-id"]) == 32
    assert len(ask(service, **{"x-request-id": "<script>"}).headers["x-request-id"]) == 32


def test_a_failure_of_a_page_has_the_form_of_every_error(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with in_process() as client:
        monkeypatch.setattr("serving.online.metrics.generate_latest", None)
        answer = client.get("/metrics")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert answer.json()["request_id"] in caplog.text


def test_a_failure_inside_is_not_shown(serve: Serve, trained: Trained, tmp_path: Path) -> None:
    """The model takes its self-test's pictures and fails at others: the log says why, the answer does not."""

    def fix_size(model: onnx.ModelProto) -> None:
        for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:3], (48, 64), strict=True):
            dimension.dim_value = size

    with serve(SERVING_MODEL=str(edit_onnx(trained.onnx, tmp_path / "fixed.onnx", fix_size))) as served:
        response = ask(served.url)
        assert response.status_code == 500
        assert response.json()["code"] == "internal"
        request_id = response.json()["request_id"]
        wait_until(lambda: request_id in served.log.read_text(), seconds=10)  # written after the answer
        assert "Traceback" in served.log.read_text()
        for word in ("Traceback", "onnxruntime", "dimensions"):
            assert word not in response.text
        assert metric(served.url, "classifier_requests_total", route="/classify", status="500") == 1
        size = httpx.post(f"{served.url}/classify", files={"image": png(48, 64)})
        assert size.status_code == 200, "the worker goes on"
