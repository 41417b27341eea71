"""What the tests share: a state directory of their own, real pictures, one trained model, one running service."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# A model that trains in seconds: what the fast tests need is a real one, not a good one.
TINY_OVERRIDES = [
    "data.train_limit=320",
    "data.validation_limit=100",
    "data.test_limit=200",
    "model.image_size=32",
    "trainer.frozen_stages=0",
    "trainer.epochs=2",
]
TINY = ["data=digits", "experiment=quick", *TINY_OVERRIDES]
# The same, as the flow takes it.
TINY_PARAMETERS = {"data": "digits", "experiment": "quick", "overrides": TINY_OVERRIDES}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the state of the checkout, nor a registry or a Prefect server that the shell points at."""
    with state_in(tmp_path_factory.mktemp("state")) as directory:
        yield directory


@contextlib.contextmanager
def state_in(directory: Path) -> Iterator[Path]:
    """Keeps all that the program remembers in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STATE_DIR", str(directory))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory / 'mlflow.db'}")
        patch.setenv("PREFECT_HOME", str(directory / "prefect"))
        for name in [name for name in os.environ if name.startswith("SERVING_")] + ["PREFECT_API_URL"]:
            patch.delenv(name, raising=False)
        yield directory


@pytest.fixture(scope="module")
def prefect_api() -> Iterator[None]:
    """A Prefect server of its own for flows that a test calls."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def cifar10_images() -> str:
    """The folder or archive of real CIFAR-10 pictures that CIFAR10_IMAGES names."""
    path = os.environ.get("CIFAR10_IMAGES", "")
    if not path:
        pytest.skip("CIFAR10_IMAGES is not set: no real CIFAR-10 pictures here")
    return str(Path(path).resolve(strict=True))


class Trained(NamedTuple):
    """A run that went through training, export, registration and promotion."""

    run_id: str
    version: str
    onnx: Path


@pytest.fixture(scope="session")
def trained(state_dir: Path) -> Trained:
    """The champion of the tests' registry."""
    from training import registry
    from training.config import compose_config
    from training.export import export_run
    from training.train import train

    run_id = train(compose_config(TINY))
    version = registry.register(run_id, export_run(run_id))
    registry.promote_if_better(version)
    # The file alone, away from what the registry keeps beside it.
    alone = state_dir / "alone.onnx"
    shutil.copy(registry.onnx_file(registry.version_uri(version)), alone)
    return Trained(run_id, version, alone)


@pytest.fixture(scope="session")
def service(trained: Trained, state_dir: Path) -> Iterator[str]:
    """The address of a running service that answers with the champion."""
    from serving.process import running

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(url, state_dir / "service.log", {"SERVING_PORT": str(port)}):
        yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m MODULE ...` in the checkout as a user would."""

    def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Pictures of several sizes and modes: train/{red,green}/ and test/{red,green}/."""
    return write_image_folder(tmp_path / "pictures")


def write_image_folder(root: Path, per_class: int = 6) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for channel, label in enumerate(("red", "green")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = random.integers(0, 60, (20 + index, 30, 3), np.uint8)
                pixels[..., channel] += 180
                image = Image.fromarray(pixels)
                image.convert("P").save(folder / f"{index}.png") if index % 3 == 0 else image.save(
                    folder / f"{index}.jpg"
                )
    return root


def assert_user_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """A mistake ends with exit code 2 and one or two lines that hold `words`, not with a traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    # Behind it, Prefect tells that its temporary server stops.
    message = "\n".join(
        line for line in message.splitlines() if " | prefect - " not in line and "EventsWorker" not in line
    )
    assert len(message.splitlines()) <= 2, message
    for word in words:
        assert word in message


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for a server that may not listen yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds} seconds")
