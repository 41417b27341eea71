"""The service before the first champion: it waits, alive and not ready, and says what is missing."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from serving.model.registry import CHAMPION, DEFAULT_NAME, champion_uri
from tests.helpers.commands import assert_user_error
from tests.helpers.pictures import png
from tests.helpers.servers import Server, answers, mlflow_server, shell_environment
from tests.helpers.state import ROOT
from tests.helpers.waiting import free_port, wait_until
from training import tracking

pytestmark = pytest.mark.slow

OURS = (sys.executable, "-m", "serving")
BENTOML = (str(Path(sys.executable).with_name("bentoml")), "serve", "serving.online.service:Classifier")
# Brings the registry, or its champion, about for a block; is called with its environment.
Comes = Callable[[Path, dict[str, str]], AbstractContextManager[object]]


@contextmanager
def the_first_training(state: Path, environment: dict[str, str]) -> Iterator[None]:
    (state / "away.db").rename(state / "mlflow.db")
    yield


@contextmanager
def a_promotion(state: Path, environment: dict[str, str]) -> Iterator[None]:
    tracking.connect().set_registered_model_alias(DEFAULT_NAME, CHAMPION, "1")
    yield


def the_server(state: Path, environment: dict[str, str]) -> AbstractContextManager[object]:
    port = int(environment["MLFLOW_TRACKING_URI"].rpartition(":")[2])
    store = f"sqlite:///{state}/mlflow.db"
    return mlflow_server(state, shell_environment(state), port, store, str(state / "artifacts"))


@pytest.mark.parametrize(
    ("command", "comes", "words"),
    [
        (OURS, the_first_training, f"no model at {champion_uri()} yet"),
        (OURS, a_promotion, f"no model at {champion_uri()} yet"),
        (OURS, the_server, "registry does not answer"),
        (BENTOML, a_promotion, f"no model at {champion_uri()} yet"),
    ],
)
def test_it_waits_until_there_is_a_champion(
    own_registry: Path, tmp_path: Path, command: tuple[str, ...], comes: Comes, words: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "SERVING_PORT": str(port), "SERVING_POLL_SECONDS": "1"}
    if comes is the_first_training:
        (own_registry / "mlflow.db").rename(own_registry / "away.db")
    elif comes is a_promotion:
        tracking.connect().delete_registered_model_alias(DEFAULT_NAME, CHAMPION)
    else:
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    if command is BENTOML:
        command = (*BENTOML, "--port", str(port))
    with Server(tmp_path / "log", *command, environment=environment, ready=answers(f"{url}/livez")) as server:
        wait_until(lambda: words in httpx.get(f"{url}/readyz").text)
        for answer in (httpx.get(f"{url}/readyz"), httpx.post(f"{url}/classify", files={"image": png()})):
            assert answer.status_code == 503
            assert answer.json()["code"] == "not_ready"
            assert words in answer.json()["message"]
            assert answer.headers["retry-after"] == "1"
        with comes(own_registry, environment):
            wait_until(lambda: httpx.get(f"{url}/readyz").is_success)
            assert httpx.post(f"{url}/classify", files={"image": png()}).status_code == 200
        assert server.process
        assert server.process.poll() is None


@pytest.mark.parametrize("command", [OURS, BENTOML], ids=["ours", "bentoml"])
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("SERVING_MODEL", "no/such.onnx", "no such file"),
        ("SERVING_PRECISION", "fp99", "SERVING_PRECISION=fp99"),
        ("SERVING_THREADS", "many", "SERVING_THREADS=many"),
    ],
)
def test_a_wrong_setting_is_not_waited_with(
    command: tuple[str, ...], setting: str, value: str, words: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "STATE_DIR": str(tmp_path), "SERVING_PORT": str(free_port()), setting: value}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert_user_error(result, words)
