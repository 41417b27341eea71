"""Prefect's Kubernetes worker at a stand-in for the cluster, which starts a Job's command as a process."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.helpers.kubernetes import KUBERNETES, Resource, invalid, named, render
from tests.helpers.servers import FlowRun, Server, prefect_server, shell_environment
from tests.helpers.state import ROOT, TINY_PARAMETERS
from tests.helpers.waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Cluster(ThreadingHTTPServer):
    """Answers to new Jobs, and starts their command; the checkout is the image, a folder of its own its volumes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), ToCluster)
        self.directory = directory
        (directory / "state").mkdir()
        self.jobs: list[tuple[str, Resource]] = []  # where it was asked for, and what it is
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, job: Resource) -> None:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        state = str(self.directory / "state")
        env = {each["name"]: each["value"].replace("/state", state, 1) for each in container["env"]}
        environment = {**shell_environment(self.directory), "STATE_DIR": state, **env}
        with open(self.directory / "job.log", "ab") as log:
            command = container["args"]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)

    def __exit__(self, *cause: object) -> None:
        self.shutdown()
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        super().__exit__(*cause)


class ToCluster(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.jobs.append((self.path, job))
        self.server.start(job)
        created = {**job, "metadata": {**job["metadata"], "name": f"{job['metadata']['generateName']}x", "uid": "1"}}
        content = json.dumps(created).encode()
        self.send_response(201)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Not to the tests' output."""


def kubeconfig(path: Path, url: str) -> str:
    there = {"clusters": [{"name": "x", "cluster": {"server": url}}], "users": [{"name": "x", "user": {}}]}
    chosen = {"contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "current-context": "x"}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **there, **chosen}))
    return str(path)


def deploy(directory: Path, environment: dict[str, str]) -> None:
    """`infra/deploy.sh` as the worker's pod runs it, but for the folder of the image."""
    checkout = directory / "checkout"
    shutil.copytree(ROOT / "infra", checkout / "infra")
    for name in ("flows", "training", "serving", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name)
    file = checkout / "infra" / "prefect.yaml"
    file.write_text(file.read_text().replace("directory: /app", f"directory: {ROOT}"))
    command = ["infra/deploy.sh", "kubernetes", "kubernetes"]
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_retraining_is_a_job_that_completes_without_its_worker(tmp_path: Path) -> None:
    pytest.importorskip("prefect_kubernetes", reason="prefect-kubernetes is not installed: make scale")
    settings = named(render(KUBERNETES / "overlays" / "local"), "ConfigMap", "settings")["data"]
    port = free_port()
    with contextlib.ExitStack() as running:
        cluster = running.enter_context(Cluster(tmp_path))
        threading.Thread(target=cluster.serve_forever, daemon=True).start()
        environment = {
            **shell_environment(tmp_path),
            **settings,
            "RUN_NAMESPACE": "cifar10-classifier",
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "KUBECONFIG": kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{cluster.server_port}"),
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",  # it watches pods
        }
        running.enter_context(prefect_server(tmp_path, shell_environment(tmp_path), port))
        deploy(tmp_path, environment)
        command = ("python", "-m", "infra.worker", "pool=kubernetes", "type=kubernetes")
        worker = running.enter_context(Server(tmp_path / "worker.log", *command, environment=environment))
        run = FlowRun.asked_for(environment, worker, "retrain/kubernetes", TINY_PARAMETERS)
        run.reaches("RUNNING")
        worker.stop()
        run.ends("COMPLETED")
        wait_until(lambda: cluster.processes[0].poll() == 0)
        ((path, job),) = cluster.jobs
        assert path == "/apis/batch/v1/namespaces/cifar10-classifier/jobs"
        assert invalid([job]) == []
        assert job["metadata"]["labels"]["prefect.io/flow-run-id"] == run.id
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["image"] == settings["RUN_IMAGE"]
        assert json.loads(run.artifact("candidates"))[0]["MLflow run"]
