"""The pages that people open, at ports of their own, in a real Chromium; and where what they show is kept."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.servers import Server, answers, prefect_server, shell_environment
from tests.helpers.state import ROOT, state_in, train_champion
from tests.helpers.waiting import free_port
from training import tracking

pytestmark = pytest.mark.slow


@pytest.fixture
def own_state(tmp_path: Path) -> Iterator[Path]:
    with state_in(tmp_path / "state") as directory:
        yield directory


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield page
    page.close()


def test_the_page_of_prefect_asks_its_own_server(own_state: Path, page: Page, tmp_path: Path) -> None:
    """Also where the shell points at another one."""
    port = free_port()
    environment = {**shell_environment(tmp_path), "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    with prefect_server(tmp_path, environment, port):
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.get_by_text("Run a task or flow to get started")).to_be_visible()


def changes() -> bytes:
    """What makes every run from this checkout a `dirty` one."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True).stdout


def location(experiment: str) -> str:
    return str(tracking.connect().get_experiment(experiment).artifact_location)


def test_mlflow_shows_and_keeps_everything_in_the_state_directory(
    own_state: Path, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a run was made through its server or without it; and the service has both versions without it."""
    before = changes()
    with mlflow.start_run(experiment_id=tracking.experiment_id("alone")) as alone:
        mlflow.log_text("made without a server", "note.txt")
    kept = f"{own_state.as_uri()}/mlartifacts"
    assert {location(id).removesuffix("/0") for id in ("0", alone.info.experiment_id)} == {kept}
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("make", "mlflow", f"MLFLOW_PORT={port}")
    server = Server(
        tmp_path / "mlflow.log", *command, environment=shell_environment(tmp_path), ready=answers(f"{url}/health")
    )
    with server:
        assert server.process
        programs = [" ".join(child.cmdline()) for child in psutil.Process(server.process.pid).children(recursive=True)]
        assert not [program for program in programs if "jobs" in program], "nothing runs that nobody uses"
        page.goto(f"{url}/#/experiments/{alone.info.experiment_id}/runs/{alone.info.run_id}/artifacts")
        page.get_by_text("note.txt").first.click()
        expect(page.get_by_text("made without a server")).to_be_visible()
        with monkeypatch.context() as patch, caplog.at_level("INFO", "training"):
            patch.setenv("MLFLOW_TRACKING_URI", url)
            patch.setenv("MLFLOW_PAGE", "http://mlflow.example")
            trained = train_champion(own_state)
    told = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert told == [f"in MLflow: http://mlflow.example/#/experiments/2/runs/{trained.run_id}"], "where people can go"
    assert tracking.artifact(trained.run_id, tracking.CLASSES_FILE).read_text(), "it is read without the server"
    assert location("2") == f"{own_state}/mlartifacts/2"
    assert changes() == before

    port = free_port()
    command = ("make", "serve", f"PORT={port}")
    ready = answers(f"http://127.0.0.1:{port}/readyz")
    with Server(tmp_path / "service.log", *command, environment=shell_environment(tmp_path), ready=ready):
        page.goto(f"http://127.0.0.1:{port}/ui")
        expect(page.locator("#model")).to_contain_text(f"version {trained.version}")
