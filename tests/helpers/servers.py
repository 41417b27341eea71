"""Programs that a test starts, breaks and starts again: the stack as processes, with Postgres and S3 behind it."""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import httpx
import psutil
import pytest
from prefect.client.base import PrefectHttpxSyncClient

from tests.helpers.state import ROOT
from tests.helpers.waiting import free_port, wait_until

SECONDS_TO_RUN = 600
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Server:
    """A program of its own process group that runs until it is stopped, and can be started again.

    Args:
        ready: whether it answers.
    """

    def __init__(
        self, log: Path, *command: str, environment: Mapping[str, str], ready: Callable[[], bool] = lambda: True
    ) -> None:
        self.log = log
        self.command = command
        self.environment = environment
        self.ready = ready
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "a") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._runs_and_is_ready)

    def _runs_and_is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"{self.log.name}:\n{self.log.read_text()[-5000:]}"
        return self.ready()

    def stop(self) -> None:
        """As somebody does it who asks politely, and waits until it is over."""
        assert self.process
        self.process.terminate()
        self.process.wait(SECONDS_TO_RUN)

    def kill(self) -> None:
        """As a power failure does it, with all that it has started."""
        if self.process:
            members = processes_of_group(self.process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            # What make has started holds its port for a moment longer than make lives.
            psutil.wait_procs(members, timeout=30)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, cause: object, *_: object) -> None:
        if cause:
            print(f"{self.log.name}:\n{self.log.read_text()[-5000:]}")
        self.kill()


def processes_of_group(group: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group:
                members.append(process)
    return members


def answers(url: str) -> Callable[[], bool]:
    return lambda: httpx.get(url).is_success


def shell_environment(directory: Path) -> dict[str, str]:
    """This process's environment with the checkout's programs first, and Prefect's files in `directory`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PREFECT_HOME": str(directory / "prefect")}


def prefect_client(api: str) -> httpx.Client:
    """Asks again, as all of Prefect's own clients do, where the server answers that its database is busy (503)."""
    return PrefectHttpxSyncClient(base_url=api, timeout=60)


def prefect_server(directory: Path, environment: Mapping[str, str], port: int) -> Server:
    """`make prefect`."""
    command = ("make", "prefect", f"PREFECT_PORT={port}")
    ready = answers(f"http://127.0.0.1:{port}/api/health")
    return Server(directory / "prefect.log", *command, environment=environment, ready=ready)


def process_worker(directory: Path, environment: Mapping[str, str]) -> Server:
    """`make worker`; it is ready once it has deployed and asks for work."""
    pool = f"{environment['PREFECT_API_URL']}/work_pools/local"

    def ready() -> bool:
        return bool(httpx.get(pool).json().get("status") == "READY")

    return Server(directory / "worker.log", "make", "worker", environment=environment, ready=ready)


@dataclass
class FlowRun:
    """What Prefect's server tells of a flow run.

    Attributes:
        worker: whose log is shown where the run does not end as it should.
    """

    api: str
    id: str
    worker: Server

    @classmethod
    def asked_for(
        cls, environment: Mapping[str, str], worker: Server, deployment: str, parameters: Mapping[str, Any]
    ) -> "FlowRun":
        """A new run of a deployment, as a user asks for it."""
        words = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        command = ["prefect", "deployment", "run", deployment, *words]
        asked = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        (id,) = re.findall(r"UUID: (\S+)", asked.stdout)
        return cls(environment["PREFECT_API_URL"], id, worker)

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = self._api("GET", f"flow_runs/{self.id}")
        return record

    @property
    def log(self) -> str:
        query = {"logs": {"flow_run_id": {"any_": [self.id]}}}
        return "\n".join(entry["message"] for entry in self._api("POST", "logs/filter", json=query))

    def artifact(self, key: str) -> Any:
        """What the run's page shows under that key."""
        query = {"artifacts": {"flow_run_id": {"any_": [self.id]}, "key": {"any_": [key]}}}
        (artifact,) = self._api("POST", "artifacts/filter", json=query)
        return artifact["data"]

    def cancel(self) -> None:
        """As a user does it."""
        command = ["prefect", "flow-run", "cancel", self.id]
        subprocess.run(command, cwd=ROOT, env=self.worker.environment, check=True, capture_output=True)

    def kill(self) -> None:
        """As a power failure does it; a run is in a process group of its own."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == self.id:
                    yield process

    def says(self, message: str) -> None:
        """Waits until its log holds the message: Prefect sends the log's lines some time after their run's state."""
        wait_until(lambda: message in self.log)

    def reaches(self, state: str) -> None:
        wait_until(lambda: self.record["state_type"] == state, SECONDS_TO_RUN)

    def ends(self, state: str) -> None:
        """Waits until it is over; it must have ended in that state."""
        wait_until(lambda: self.record["state_type"] in ENDS, SECONDS_TO_RUN)
        assert self.record["state_type"] == state, f"{self.log}\n{self.worker.log.read_text()[-5000:]}"

    def _api(self, method: str, path: str, **body: Any) -> Any:
        with prefect_client(self.api) as client:
            return client.request(method, path, **body).json()


def mlflow_server(directory: Path, environment: Mapping[str, str], port: int, store: str, artifacts: str) -> Server:
    command = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    places = ("--backend-store-uri", store, "--artifacts-destination", artifacts)
    ready = answers(f"http://127.0.0.1:{port}/health")
    environment = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as make mlflow
    return Server(directory / "mlflow.log", *command, *places, environment=environment, ready=ready)


class Postgres:
    """Debian's Postgres with databases of its own."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        if not found:
            pytest.skip("no Postgres: apt-get install postgresql; .ci/run installs it")
        self.port = free_port()
        self.data = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's directories are root's alone
        self.programs = found[-1].parent
        self._run("initdb", "--pgdata", str(self.data), "--username", "postgres", "--auth", "trust")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        if os.geteuid() == 0:  # as whom it does not run
            account = pwd.getpwnam("postgres")
            os.chown(self.data, account.pw_uid, account.pw_gid)
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def control(self, action: str) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(self.data / "log")
        self._run("pg_ctl", action, "-w", "-m", "immediate", "-D", str(self.data), "-l", log, "-o", options)

    def url(self, driver: str, database: str) -> str:
        return f"postgresql+{driver}://postgres@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> "Postgres":
        self.control("start")
        for database in ("mlflow", "prefect"):
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", database)
        return self

    def __exit__(self, *_: object) -> None:
        self.control("stop")
        shutil.rmtree(self.data)


class Storage:
    """moto's S3 server; it can be told to refuse every request."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = ("moto_server", "--host", "127.0.0.1", "--port", str(port))
        ready = answers(f"{self.url}/moto-api/")
        self.server = Server(directory / "storage.log", *command, environment=environment, ready=ready)
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )

    def refuse(self, yes: bool) -> None:
        """From now on no key is known: every request is answered with 403, or is not."""
        requests_without_a_check = "0" if yes else "1000000000"
        httpx.post(f"{self.url}/moto-api/reset-auth", content=requests_without_a_check).raise_for_status()

    def __enter__(self) -> "Storage":
        self.server.start()
        self.client().create_bucket(Bucket="mlflow")
        return self

    def __exit__(self, *cause: object) -> None:
        self.server.__exit__(*cause)


class Stack(NamedTuple):
    """The environment of a shell that uses the stack, and its parts."""

    environment: dict[str, str]
    state: Path
    postgres: Postgres
    storage: Storage
    mlflow: Server
    prefect: Server
    worker: Server


@contextlib.contextmanager
def running_stack(directory: Path) -> Iterator[Stack]:
    """MLflow and Prefect on Postgres and S3, and a process worker that has deployed infra/prefect.yaml's `local`."""
    state = directory / "state"
    state.mkdir()
    servers = {**shell_environment(directory), "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30"}
    mlflow_port, prefect_port = free_port(), free_port()
    with contextlib.ExitStack() as running:
        postgres = running.enter_context(Postgres())
        storage = running.enter_context(Storage(directory, servers))
        servers |= storage.environment
        servers["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = postgres.url("asyncpg", "prefect")
        store = postgres.url("psycopg2", "mlflow")
        mlflow = running.enter_context(mlflow_server(directory, servers, mlflow_port, store, "s3://mlflow"))
        prefect = running.enter_context(prefect_server(directory, servers, prefect_port))
        environment = {
            **shell_environment(directory / "client"),
            "STATE_DIR": str(state),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        }
        worker = running.enter_context(process_worker(directory, environment))
        yield Stack(environment, state, postgres, storage, mlflow, prefect, worker)
