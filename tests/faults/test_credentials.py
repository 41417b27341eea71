"""Whatever commands, flows and the service leave behind, there is no credential in it."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.helpers.servers import Server, answers, mlflow_server, prefect_server, shell_environment
from tests.helpers.state import ROOT, TINY, TINY_OVERRIDES
from tests.helpers.waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PASSWORD = "s3cret@of/ann"
IN_ADDRESSES = "ann:s3cret%40of%2Fann@"
TRACES = (b"s3cret", base64.b64encode(f"ann:{PASSWORD}".encode()).rstrip(b"="))
FAILING_FLOW = """
from flows.retrain import rank
from prefect import flow
@flow
def failing():
    rank.with_options(retries=0)({"model": "run"})
failing()
"""


class Shell(NamedTuple):
    """A directory with everything that servers and commands write, a shell's environment, and MLflow's server."""

    directory: Path
    environment: dict[str, str]
    mlflow: Server

    def python(self, *words: str, **environment: str) -> tuple[int, str]:
        """Runs Python; its exit code and what it prints, which is looked through as well."""
        everything = {**self.environment, **environment}
        command = [sys.executable, *words]
        result = subprocess.run(command, cwd=ROOT, env=everything, capture_output=True, text=True)
        output = result.stdout + result.stderr
        self.assert_clean(output.encode(), " ".join(words))
        return result.returncode, output

    def assert_clean(self, content: bytes, where: str) -> None:
        for trace in TRACES:
            at = content.find(trace)
            assert at < 0, f"{where}: {content[max(0, at - 300) : at + 100]!r}"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Credentials in every setting that has room for them; Prefect's server asks for its own."""
    directory = tmp_path_factory.mktemp("everything")
    mlflow_port, prefect_port = free_port(), free_port()
    servers = {**shell_environment(directory), "PREFECT_SERVER_API_AUTH_STRING": f"ann:{PASSWORD}"}
    environment = {
        **shell_environment(directory / "client"),
        "STATE_DIR": str(directory / "state"),
        "MLFLOW_TRACKING_URI": f"http://{IN_ADDRESSES}127.0.0.1:{mlflow_port}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "PREFECT_API_URL": f"http://{IN_ADDRESSES}127.0.0.1:{prefect_port}/api",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "MLFLOW_TRACKING_TOKEN": PASSWORD,
    }
    store, artifacts = f"sqlite:///{directory}/mlflow.db", str(directory / "artifacts")
    mlflow = mlflow_server(directory, servers, mlflow_port, store, artifacts)
    with mlflow, prefect_server(directory, servers, prefect_port):
        yield Shell(directory, environment, mlflow)


def test_nothing_that_is_left_behind_holds_a_credential(shell: Shell) -> None:
    address = f"https://{IN_ADDRESSES}pictures.invalid/all.zip"
    overrides = str([*TINY_OVERRIDES, "trainer.epochs=1"]).replace(" ", "").replace("'", '"')
    code, output = shell.python("-m", "flows.retrain", "data=digits", f"overrides={overrides}")
    assert code == 0, output
    for words in (
        ["training.train", "data=folder", f"data.root={address}"],
        ["flows.retrain", f"data={address}"],
        ["flows.batch_predict", f"source={address}", "target=out.parquet"],
    ):
        code, output = shell.python("-m", *words)
        assert code == 2, output
        assert "pictures.invalid" in output, "which address it is can be read"
    misspelt = f"postgresl://{IN_ADDRESSES}127.0.0.1/mlflow"
    code, output = shell.python("-m", "training.train", *TINY, MLFLOW_TRACKING_URI=misspelt)
    assert code == 2, output
    assert "postgresl://127.0.0.1/mlflow" in output

    shell.mlflow.kill()
    code, output = shell.python("-m", "training.train", *TINY)
    assert code == 2, output
    assert "does not answer" in output
    code, output = shell.python("-c", FAILING_FLOW)
    assert code == 1, output
    assert "MlflowException" in output, "the traceback of what has no words for people"
    waiting(shell)

    for file in shell.directory.rglob("*"):
        if file.is_file():
            shell.assert_clean(file.read_bytes(), str(file))


def waiting(shell: Shell) -> None:
    """A service that finds no registry, and no copy of a model, says so."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    environment = {**shell.environment, "STATE_DIR": str(shell.directory / "service"), "SERVING_PORT": str(port)}
    log = shell.directory / "service.log"
    with Server(log, sys.executable, "-m", "serving", environment=environment, ready=answers(f"{url}/livez")):
        wait_until(
            lambda: "does not answer" in httpx.get(f"{url}/readyz").text and "does not answer" in log.read_text()
        )
        shell.assert_clean(httpx.get(f"{url}/readyz").content, "/readyz")


def test_a_worker_does_not_start_with_a_password_that_prefect_would_show(shell: Shell) -> None:
    command = ["infra/deploy.sh", "local", "process"]
    result = subprocess.run(command, cwd=ROOT, env=shell.environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "PREFECT_API_AUTH_STRING" in result.stderr
    shell.assert_clean(result.stdout.encode() + result.stderr.encode(), "infra/deploy.sh")
