"""What a retraining depends on breaks in the middle of it: nothing is lost, and nothing is registered by halves."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from tests.conftest import ROOT, TINY, wait_until
from tests.servers import Stack, running_stack
from training.registry import REGISTERED_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SECONDS_TO_RUN = 600
OVERRIDES = [override for override in TINY if not override.startswith(("data=", "experiment=", "trainer.epochs="))]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as stack:
        hurry_automation(stack)
        yield stack


def hurry_automation(stack: Stack) -> None:
    """Five minutes of silence are long for a test: one, two heartbeats, is enough for this server."""
    url = f"{stack.environment['PREFECT_API_URL']}/automations"
    (automation,) = httpx.post(f"{url}/filter", json={}, timeout=60).raise_for_status().json()
    automation["trigger"]["within"] = 60
    known = ("name", "description", "enabled", "trigger", "actions")
    httpx.put(f"{url}/{automation['id']}", json={key: automation[key] for key in known}).raise_for_status()


class FlowRun:
    """A retraining that a user asks of the worker; every one has a seed, and so checkpoints, of its own."""

    def __init__(self, stack: Stack, seed: int, epochs: int = 6) -> None:
        self.stack = stack
        self.runs_before = set(self._ids())
        overrides = [*OVERRIDES, f"trainer.epochs={epochs}", f"seed={seed}"]
        parameters = {"data": "digits", "experiment": "quick", "overrides": overrides}
        words = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        command = ["prefect", "deployment", "run", "retrain/local", *words]
        asked = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        (self.id,) = set(self._ids()) - self.runs_before

    def _api(self, method: str, path: str, **body: Any) -> Any:
        url = f"{self.stack.environment['PREFECT_API_URL']}/{path}"
        return httpx.request(method, url, timeout=60, **body).raise_for_status().json()

    def _ids(self) -> list[str]:
        return [run["id"] for run in self._api("POST", "flow_runs/filter", json={})]

    @property
    def state(self) -> str:
        state: str = self._api("GET", f"flow_runs/{self.id}")["state_type"]
        return state

    @property
    def log(self) -> str:
        query = {"logs": {"flow_run_id": {"any_": [self.id]}}}
        return "\n".join(entry["message"] for entry in self._api("POST", "logs/filter", json=query))

    def trains(self) -> None:
        """Waits until it is in the middle of training."""
        wait_until(lambda: bool(list(self.stack.state.glob("runs/*/epoch-0001"))), SECONDS_TO_RUN)

    def artifact(self, key: str) -> Any:
        """What the run's page shows under that key."""
        query = {"artifacts": {"flow_run_id": {"any_": [self.id]}, "key": {"any_": [key]}}}
        (artifact,) = self._api("POST", "artifacts/filter", json=query)
        return artifact["data"]

    def ends(self, state: str) -> None:
        def over() -> bool:
            return self.state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        wait_until(over, SECONDS_TO_RUN)
        assert self.state == state, self.log


def versions(stack: Stack) -> list[Any]:
    """The registered versions, each of which is whole: a decision, and a model that can be fetched."""
    client = mlflow.MlflowClient(stack.environment["MLFLOW_TRACKING_URI"])
    found = list(client.search_model_versions(f"name = '{REGISTERED_MODEL}'"))
    for version in found:
        assert version.tags["decision"]
        mlflow.set_tracking_uri(stack.environment["MLFLOW_TRACKING_URI"])
        folder = mlflow.artifacts.download_artifacts(f"models:/{REGISTERED_MODEL}/{version.version}")
        assert list(Path(folder).glob("*.onnx")), "the artifact store has the model"
    return found


@pytest.fixture
def one_more_version(stack: Stack) -> Iterator[None]:
    """However a retraining came to its end, it has registered one version, and left no checkpoint."""
    before = len(versions(stack))
    yield
    assert len(versions(stack)) == before + 1
    assert not list(stack.state.glob("runs/*"))


@pytest.mark.usefixtures("one_more_version")
def test_everything_is_kept_in_postgres_and_s3(stack: Stack) -> None:
    run = FlowRun(stack, seed=1, epochs=2)
    run.ends("COMPLETED")
    (version,) = versions(stack)
    (candidate,) = json.loads(run.artifact("candidates"))
    assert candidate["MLflow run"] == version.run_id
    assert version.tags["decision"] in run.artifact("decision")
    page = f"{stack.environment['MLFLOW_TRACKING_URI']}/#/experiments/1/runs/{version.run_id}"
    assert f"({page})" in run.artifact("mlflow-run")
    keys = [entry["Key"] for entry in stack.storage.client().list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(key.endswith(".onnx") for key in keys)
    assert any(key.endswith("report.html") for key in keys)
    assert not list(stack.state.rglob("*.db"))
    assert not list(stack.state.rglob("mlartifacts"))


@pytest.mark.usefixtures("one_more_version")
def test_a_killed_worker_s_run_is_gone_on_with_by_the_next(stack: Stack) -> None:
    killed = FlowRun(stack, seed=2)
    killed.trains()
    stack.worker.kill()
    stack.worker.start()
    again = FlowRun(stack, seed=2)
    again.ends("COMPLETED")
    assert "going on from the checkpoint of epoch" in again.log
    wait_until(lambda: killed.state == "CRASHED", SECONDS_TO_RUN)


@pytest.mark.usefixtures("one_more_version")
def test_prefect_s_server_is_started_again(stack: Stack) -> None:
    run = FlowRun(stack, seed=3)
    run.trains()
    stack.prefect.kill()
    stack.prefect.start()
    run.ends("COMPLETED")


@pytest.mark.usefixtures("one_more_version")
def test_mlflow_is_down_for_a_minute(stack: Stack) -> None:
    run = FlowRun(stack, seed=4)
    run.trains()
    stack.mlflow.kill()
    time.sleep(60)  # what is tested
    stack.mlflow.start()
    run.ends("COMPLETED")


@pytest.mark.usefixtures("one_more_version")
def test_postgres_is_started_again(stack: Stack) -> None:
    run = FlowRun(stack, seed=5)
    run.trains()
    stack.postgres.control("restart")
    run.ends("COMPLETED")


@pytest.mark.usefixtures("one_more_version")
def test_the_artifact_store_refuses_for_a_while(stack: Stack) -> None:
    run = FlowRun(stack, seed=6)
    run.trains()
    stack.storage.refuse(True)
    wait_until(lambda: '" 403 ' in stack.storage.server.log.read_text(), SECONDS_TO_RUN)
    stack.storage.refuse(False)
    run.ends("COMPLETED")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of a few megabytes, and what gives it another size."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("no small disk: mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no small disk: a tmpfs can't be mounted here")
    yield disk, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True) and None
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_said_in_words_and_the_next_run_goes_on(
    small_disk: tuple[Path, Callable[[str], None]], tmp_path: Path, run_module: Callable[..., Any]
) -> None:
    disk, resize = small_disk
    environment = {"STATE_DIR": str(disk), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def run() -> subprocess.CompletedProcess[str]:
        result: subprocess.CompletedProcess[str] = run_module("training.train", *TINY, **environment)
        return result

    full = run()
    assert full.returncode == 2, full.stderr
    assert "the disk is full" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list(disk.glob("runs/*/epoch-*")), "no checkpoint by halves"
    resize("1g")
    mended = run()
    assert mended.returncode == 0, mended.stderr
