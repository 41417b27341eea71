"""From pictures to an answer, as `make demo` does it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from flows.retrain import retrain
from serving.model.registry import DEFAULT_NAME, onnx_file, version_uri
from tests.helpers.answers import assert_same_answers
from tests.helpers.service import served
from tests.helpers.state import ROOT, state_in
from tests.helpers.waiting import free_port, wait_until
from training import tracking
from training.release import registry

pytestmark = pytest.mark.slow


@pytest.fixture
def own_state(tmp_path: Path) -> Iterator[Path]:
    with state_in(tmp_path / "state") as directory:
        yield directory


def test_without_a_network_the_demo_says_so_and_goes_on_with_digits(own_state: Path) -> None:
    port = free_port()
    unreachable = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    environment = {**os.environ, **unreachable, "PORT": str(port)}
    command = ["make", "--no-print-directory", "demo", "DATA="]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "CIFAR-10 can't be downloaded" in result.stdout
    assert "handwritten digits instead" in result.stdout
    start = result.stdout.index("\n{") + 1
    answer, _ = json.JSONDecoder().raw_decode(result.stdout[start:])
    champion = registry.champion(DEFAULT_NAME)
    assert champion is not None
    assert answer["model"]["data"] == champion.tags["data"] == "digits"
    assert answer["model"]["run_id"] == champion.run_id
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert MlflowClient().get_run(champion.run_id).data.metrics["test_accuracy"] > 0.8
    wait_until(lambda: not processes_of(own_state), seconds=30)  # the service has been stopped


def processes_of(state: Path) -> list[psutil.Process]:
    """What still runs of a demo that keeps its state there."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get("STATE_DIR") == str(state)
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_nothing_running(own_state: Path, number: int) -> None:
    command = [sys.executable, "-m", "infra.demo", "data=digits"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any((own_state / "runs").glob("*")) or process.poll() is not None)
        process.send_signal(number)
        output, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output + errors
    assert "Traceback" not in output + errors
    wait_until(lambda: not processes_of(own_state), seconds=30)


def test_a_port_in_use_is_noticed_before_any_work(own_state: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = ["make", "demo", "DATA=digits", f"PORT={port}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"error: 127.0.0.1:{port} can't be listened on" in result.stderr
    assert not (own_state / "mlflow.db").exists()


def test_real_pictures_from_the_archive_to_the_answer(
    own_state: Path, prefect_api: None, cifar10_images: str, tmp_path: Path
) -> None:
    version = retrain(
        data=cifar10_images,
        overrides=["data.train_limit=4000", "data.test_limit=2000", "model.image_size=64", "trainer.epochs=1"],
    )
    client = tracking.connect()
    run_id = str(client.get_model_version(DEFAULT_NAME, version).run_id)
    metrics = client.get_run(run_id).data.metrics
    assert metrics["test_accuracy"] > 0.6
    assert metrics["parity_disagreements"] == 0
    assert metrics["parity_max_difference"] < 1e-3

    with served(own_state / "service.log") as service:
        assert (
            assert_same_answers(service.url, run_id, onnx_file(version_uri(DEFAULT_NAME, version), own_state), tmp_path)
            == 100
        )
