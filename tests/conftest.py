"""What all tests get: a state directory of their own, real pictures, one trained model, one running service."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from xdist.scheduler import LoadScopeScheduling

from tests.helpers.pictures import write_image_folder
from tests.helpers.service import served
from tests.helpers.state import Trained, state_in, train_champion


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


class ByFile(LoadScopeScheduling):
    """Of several tests at a time, a file's share what they set up, and those of the containers their images."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "containers" if "containers/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the state of the checkout, nor a registry or a Prefect server that the shell points at."""
    with state_in(tmp_path_factory.mktemp("state")) as directory:
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


@pytest.fixture(scope="session")
def trained(state_dir: Path) -> Trained:
    """The champion of the tests' registry."""
    return train_champion(state_dir)


@pytest.fixture(scope="session")
def service(trained: Trained, state_dir: Path) -> Iterator[str]:
    """The address of a service that answers with the champion, in a process of its own."""
    with served(state_dir / "service.log") as running:
        yield running.url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Pictures of several sizes and modes: train/{red,green}/ and test/{red,green}/."""
    return write_image_folder(tmp_path / "pictures")
