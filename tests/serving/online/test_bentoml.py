"""The service as BentoML's users know it: its client, its schemas, and a Bento that holds a model."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import psutil
import pytest
from bentoml.exceptions import BentoMLException

from tests.helpers.pictures import png
from tests.helpers.state import ROOT, Trained
from tests.helpers.waiting import free_port, wait_until


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    return path


def test_its_client_finds_the_methods(service: str, picture: Path) -> None:
    expected = httpx.post(f"{service}/classify", files={"image": png()}).json()
    with bentoml.SyncHTTPClient(service) as client:
        one = client.classify(image=picture)
        assert one["probabilities"] == expected["probabilities"]
        two = client.classify_batch(images=[picture, picture], top_k=1)
        assert [result["label"] for result in two["results"]] == [expected["label"]] * 2
        assert all(len(result["probabilities"]) == 1 for result in two["results"])
        picture.write_bytes(b"hello")
        with pytest.raises(BentoMLException, match="not a picture"):
            client.classify(image=picture)


def test_its_schemas_name_the_methods_and_their_types(service: str) -> None:
    routes = {route["name"]: route for route in httpx.get(f"{service}/schema.json").json()["routes"]}
    assert set(routes) == {"classify", "classify_batch"}
    assert routes["classify"]["input"]["properties"]["image"]["type"] == "file"
    assert {"label", "confidence", "probabilities"} <= set(routes["classify"]["output"]["properties"])


@pytest.fixture(scope="module")
def built(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A Bento of the checkout with the trained file: its tag, and the environment in which it is known."""
    root, home = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("bentoml")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    archive = subprocess.run(["tar", "c", "-T", "-"], cwd=ROOT, check=True, capture_output=True, input=names.encode())
    subprocess.run(["tar", "x"], cwd=root, check=True, input=archive.stdout)
    os.symlink(ROOT / ".venv", root / ".venv")
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = ["make", "bento", f"MODEL={trained.onnx}"]
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    (name,) = [path.parent.name for path in home.glob("bentos/*/latest")]
    return f"{name}:latest", environment


@pytest.fixture
def bento_server(built: tuple[str, dict[str, str]], tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    tag, environment = built
    port = free_port()
    command = [Path(sys.executable).with_name("bentoml"), "serve", tag, "--port", str(port)]
    environment = {name: value for name, value in environment.items() if not name.startswith("SERVING_")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/readyz").is_success)
        yield url, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_bento_answers_with_the_model_that_it_holds(
    bento_server: tuple[str, psutil.Process], trained: Trained
) -> None:
    url, server = bento_server
    answer: dict[str, Any] = httpx.post(f"{url}/classify", files={"image": png()}).raise_for_status().json()
    assert answer["model"]["run_id"] == trained.run_id
    refused = httpx.post(f"{url}/classify", files={"image": b"hello"})
    assert (refused.status_code, refused.json()["code"]) == (400, "not_a_picture")
    # A killed parent takes its worker along: nothing is left that holds the port.
    workers = server.children(recursive=True)
    assert workers
    server.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
