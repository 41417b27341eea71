"""Services of the trained ONNX file with settings of their own."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from serving.model.registry import DEFAULT_NAME, version_uri
from tests.helpers import service as services
from tests.helpers.service import InProcess, Serve, Served
from tests.helpers.state import Trained, state_in


@pytest.fixture(scope="session")
def serve(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Runs a service in a process of its own, with environment variables, until the block ends."""

    @contextmanager
    def start(**settings: str) -> Iterator[Served]:
        log = tmp_path_factory.mktemp("service") / "log"
        with services.served(log, **{"SERVING_MODEL": str(trained.onnx), **settings}) as running:
            yield running

    return start


@pytest.fixture(scope="session")
def in_process(trained: Trained) -> InProcess:
    """Runs the application in this process, with settings by name; yields a client of it."""

    def start(**settings: object) -> AbstractContextManager[httpx.Client]:
        return services.in_process(**{"model": str(trained.onnx), **settings})

    return start


@pytest.fixture(scope="session")
def client(trained: Trained, in_process: InProcess) -> Iterator[httpx.Client]:
    """A client of the application with the registry's first version and otherwise the default settings.

    It does not follow the alias: a test that has a registry of its own would exchange the model of all others.
    """
    with in_process(model=version_uri(DEFAULT_NAME, trained.version)) as client:
        yield client


@pytest.fixture
def own_registry(trained: Trained, state_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the tests' registry, so that its champion can come and change."""
    with state_in(tmp_path / "state") as directory:
        shutil.copy(state_dir / "mlflow.db", directory / "mlflow.db")
        yield directory
