"""What a retraining depends on breaks in the middle of it: nothing is lost, and nothing is registered by halves."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from serving.model.registry import DEFAULT_NAME
from tests.helpers.commands import run_module
from tests.helpers.retraining import ask, hurried_stack, in_mid_training
from tests.helpers.servers import SECONDS_TO_RUN, Stack
from tests.helpers.state import TINY
from tests.helpers.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with hurried_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def versions(stack: Stack) -> list[Any]:
    """The registered versions, each of which is whole: a decision, and a model that can be fetched."""
    # Neither set_tracking_uri, which sets this process's environment for the tests after these as well, nor the
    # registry's address of the model, which MLflow looks up on this process's server whatever it is given.
    server = stack.environment["MLFLOW_TRACKING_URI"]
    client = mlflow.MlflowClient(server)
    found = list(client.search_model_versions(f"name = '{DEFAULT_NAME}'"))
    for version in found:
        assert version.tags["decision"]
        model = client.get_model_version_download_uri(DEFAULT_NAME, version.version)
        folder = mlflow.artifacts.download_artifacts(model, tracking_uri=server)
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
    run = ask(stack, seed=1, epochs=2)
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
    killed = in_mid_training(stack, seed=2)
    stack.worker.kill()
    stack.worker.start()
    again = ask(stack, seed=2)
    again.ends("COMPLETED")
    again.says("resuming from the checkpoint of epoch")
    killed.reaches("CRASHED")


def prefect_is_started_again(stack: Stack) -> None:
    stack.prefect.kill()
    stack.prefect.start()


def mlflow_is_down_for_a_minute(stack: Stack) -> None:
    stack.mlflow.kill()
    time.sleep(60)  # what is tested
    stack.mlflow.start()


def postgres_is_started_again(stack: Stack) -> None:
    stack.postgres.control("restart")


def storage_refuses_for_a_while(stack: Stack) -> None:
    stack.storage.refuse(True)
    wait_until(lambda: '" 403 ' in stack.storage.server.log.read_text(), SECONDS_TO_RUN)
    stack.storage.refuse(False)


@pytest.mark.usefixtures("one_more_version")
@pytest.mark.parametrize(
    ("seed", "happens"),
    enumerate(
        [
            prefect_is_started_again,
            mlflow_is_down_for_a_minute,
            postgres_is_started_again,
            storage_refuses_for_a_while,
        ],
        start=3,
    ),
)
def test_a_retraining_outlives_what_happens(stack: Stack, seed: int, happens: Callable[[Stack], None]) -> None:
    run = in_mid_training(stack, seed)
    happens(stack)
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
    small_disk: tuple[Path, Callable[[str], None]], tmp_path: Path
) -> None:
    disk, resize = small_disk
    environment = {"STATE_DIR": str(disk), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def run() -> subprocess.CompletedProcess[str]:
        return run_module("training.train", *TINY, **environment)

    full = run()
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    message = full.stderr[full.stderr.index("error: ") :]
    assert f"the disk of {disk}" in message
    assert len(message.splitlines()) == 2, message
    assert not list(disk.glob("runs/*/epoch-*")), "no checkpoint by halves"
    resize("1g")
    mended = run()
    assert mended.returncode == 0, mended.stderr
