"""Retraining in containers: Prefect's worker on the engine's socket, an MLflow server, and the service beside them."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import docker
import httpx
import mlflow
import pytest

from flows.clean_up import free_containers
from serving.model.registry import CHAMPION, DEFAULT_NAME
from tests.helpers.containers import READ_ONLY, STORE, Images, podman
from tests.helpers.pictures import png
from tests.helpers.servers import (
    SECONDS_TO_RUN,
    FlowRun,
    Server,
    answers,
    mlflow_server,
    prefect_client,
    shell_environment,
)
from tests.helpers.state import ROOT, TINY_OVERRIDES, TINY_PARAMETERS
from tests.helpers.waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Stack(NamedTuple):
    """The environment of a shell on this machine, its servers, and the worker."""

    environment: dict[str, str]
    server: Server
    prefect: httpx.Client
    mlflow: str
    worker: Server


PREFECT = "prefect-server"
RUNS = "--filter=label=cifar10-classifier=run"
FOR_HOURS = {**TINY_PARAMETERS, "overrides": [*TINY_OVERRIDES, "trainer.epochs=100000"]}


def prefect_container(log: Path, environment: Mapping[str, str], image: str, port: int) -> Server:
    """Prefect's server as infra/compose.yaml starts it, but for its database, which is a file in its volume."""
    settings = {
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": "/tmp/ui",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30",
    }
    command = ("podman", "run", "--rm", f"--name={PREFECT}", *READ_ONLY, "--tmpfs=/tmp", "--network=host")
    volume = "--volume=cifar10-classifier-prefect:/state"
    given = [f"--env={name}={value}" for name, value in settings.items()]
    serve = (image, "prefect", "server", "start", "--host=127.0.0.1", f"--port={port}")
    ready = answers(f"http://127.0.0.1:{port}/api/health")
    return Server(log, *command, volume, *given, *serve, environment=environment, ready=ready)


@pytest.fixture(scope="module")
def stack(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both servers, the engine's socket, and a worker that has deployed infra/prefect.yaml."""
    directory = tmp_path_factory.mktemp("stack")
    prefect_port, mlflow_port = free_port(), free_port()
    api, tracking = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    socket = f"unix://{STORE}/podman.sock"
    environment = {
        **shell_environment(directory),
        "CONTAINER_NETWORK": "host",
        "CONTAINER_RUNTIME": "",
    }
    with contextlib.ExitStack() as running:
        engine = ("podman", "system", "service", "--time=0", socket)
        running.enter_context(Server(directory / "engine.log", *engine, environment=environment))
        server = prefect_container(directory / "prefect.log", environment, images.train, prefect_port)
        running.enter_context(server)
        store, artifacts = f"sqlite:///{directory}/mlflow.db", str(directory / "artifacts")
        running.enter_context(mlflow_server(directory, environment, mlflow_port, store, artifacts))
        environment |= {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": tracking, "DOCKER_HOST": socket}
        environment["MLFLOW_PAGE"] = tracking
        deploy = ["infra/deploy.sh", "containers", "docker"]
        deployed = subprocess.run(deploy, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        command = ("python", "-m", "infra.worker", "pool=containers", "type=docker")
        worker = Server(directory / "worker.log", *command, environment=environment)
        running.enter_context(worker)
        client = running.enter_context(prefect_client(api))
        yield Stack(environment, server, client, tracking, worker)
    podman("rm", "--all", "--force", "--volumes")
    podman("volume", "rm", "--force", "cifar10-classifier-state", "cifar10-classifier-prefect")


def flow_runs(stack: Stack, deployment: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a deployment by their state."""
    name = deployment.partition("/")[2]
    flow = deployment.partition("/")[0]
    query = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in stack.prefect.post("/flow_runs/filter", json=query).json():
        runs.setdefault(run["state_type"], []).append(run)
    return runs


def first_at_work(stack: Stack, deployment: str) -> str:
    """Waits until a run of a deployment is at work; returns its id."""

    def at_work() -> list[dict[str, Any]]:
        runs = flow_runs(stack, deployment)
        return [run for state in ("RUNNING", "COMPLETED", "FAILED", "CRASHED") for run in runs.get(state, [])]

    wait_until(lambda: bool(at_work()), SECONDS_TO_RUN)
    run_id: str = at_work()[0]["id"]
    return run_id


def ask(stack: Stack, deployment: str, parameters: Mapping[str, Any]) -> FlowRun:
    return FlowRun.asked_for(stack.environment, stack.worker, deployment, parameters)


@pytest.fixture(scope="module")
def champion(stack: Stack) -> Any:
    """The version that a retraining which a user asked for has made the champion."""
    ask(stack, "retrain/container", TINY_PARAMETERS).ends("COMPLETED")
    return mlflow.MlflowClient(stack.mlflow).get_model_version_by_alias(DEFAULT_NAME, CHAMPION)


def test_a_retraining_in_a_container_registers_and_promotes(champion: Any, images: Images) -> None:
    revision = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert champion.tags["git_commit"] == podman("image", "inspect", "--format", revision, images.train)
    assert champion.tags["decision"] == "there was no champion"
    # The container ends well, and is kept for `make down` to find.
    wait_until(lambda: bool(podman("ps", "--all", "--quiet", RUNS, "--filter=exited=0")))


def test_a_clean_up_removes_the_containers_of_ended_runs(
    champion: Any, images: Images, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: not podman("ps", "--quiet", RUNS))
    gone = podman("run", "--detach", "--label=cifar10-classifier=run", images.serve, "true")[:12]
    wait_until(lambda: not podman("ps", "--quiet", RUNS))
    ended = podman("ps", "--all", "--quiet", RUNS).split()
    assert {gone} < {*ended}
    mine = podman("create", "--volume=/mine", images.serve)  # nobody's run: it stays, with its volume
    monkeypatch.setenv("DOCKER_HOST", stack.environment["DOCKER_HOST"])
    found = docker.APIClient.containers

    def quicker(*asked: Any, **filters: Any) -> Any:
        """Finds what is there; then somebody else, such as `make down`, removes one of them."""
        there = found(*asked, **filters)
        podman("rm", gone)
        return there

    try:
        for dry_run in (True, False):
            monkeypatch.setattr(docker.APIClient, "containers", found if dry_run else quicker)
            (containers,) = free_containers.fn(datetime.now(UTC), dry_run)
            assert containers["number"] == len(ended)
            left = podman("ps", "--all", "--quiet", RUNS).split()
            assert left == (ended if dry_run else [])
        assert "cifar10-classifier-state" in podman("volume", "ls", "--quiet").split()
        assert mine[:12] in podman("ps", "--all", "--quiet").split()
    finally:
        podman("rm", "--volumes", mine)


def test_the_serving_image_answers_with_the_new_champion(champion: Any, images: Images, stack: Stack) -> None:
    port = free_port()
    container = podman(
        *("run", "--detach", *READ_ONLY, "--network=host"),
        *(f"--env=MLFLOW_TRACKING_URI={stack.mlflow}", f"--env=SERVING_PORT={port}"),
        images.serve,
    )
    try:
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").is_success)
        answer = httpx.post(f"http://127.0.0.1:{port}/classify", files={"image": png(40, 30)}).raise_for_status().json()
        assert answer["model"]["version"] == str(champion.version)
        assert answer["model"]["run_id"] == champion.run_id
    finally:
        print(podman("logs", container))
        podman("rm", "--force", "--volumes", container)


def test_pictures_in_the_runs_volume_are_scored_in_a_container(
    champion: Any, images: Images, stack: Stack, image_folder: Path
) -> None:
    volumes = f"--volume={image_folder}:/pictures:ro", "--volume=cifar10-classifier-state:/state"
    podman("run", "--rm", *volumes, images.train, "cp", "--recursive", "/pictures", "/state/pictures")
    scored = {"source": "/state/pictures", "target": "/state/predictions.parquet"}
    ask(stack, "batch-predict/container", scored).ends("COMPLETED")
    podman("run", "--rm", *volumes, images.train, "test", "-s", "/state/predictions.parquet")
    nightly = stack.prefect.get("/deployments/name/batch-predict/nightly").json()
    assert nightly["parameters"] == {**scored, "may_be_empty": True}
    assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 1 * * *"]


def test_a_rollback_with_nothing_to_go_back_to_says_so(champion: Any, stack: Stack) -> None:
    run = ask(stack, "rollback/container", {})
    run.ends("FAILED")
    run.says("is the first: there is none to go back to")
    assert "Traceback" not in run.log


def test_scheduled_runs_complete_and_do_not_overlap(champion: Any, stack: Stack) -> None:
    deployment = stack.prefect.get("/deployments/name/retrain/weekly").json()
    (weekly,) = deployment["schedules"]
    assert (weekly["schedule"]["cron"], weekly["active"]) == ("0 3 * * 1", True)
    # Far more often than a run takes.
    often = {"schedule": {"interval": 10}, "active": True, "parameters": {**TINY_PARAMETERS, "force": True}}
    url = f"/deployments/{deployment['id']}/schedules"
    (schedule,) = stack.prefect.post(url, json=[often]).json()
    run = FlowRun(stack.environment["PREFECT_API_URL"], first_at_work(stack, "retrain/weekly"), stack.worker)
    run.ends("COMPLETED")
    cancelled = flow_runs(stack, "retrain/weekly").get("CANCELLED", [])
    stack.prefect.delete(f"{url}/{schedule['id']}")
    assert run.record["auto_scheduled"]
    assert cancelled, "what was due while the run was at work is left out"
    versions = mlflow.MlflowClient(stack.mlflow).search_model_versions(f"name = '{DEFAULT_NAME}'")
    assert len(versions) == 2


def test_a_run_outlives_a_server_whose_container_is_made_anew(stack: Stack) -> None:
    run = ask(stack, "retrain/container", FOR_HOURS)
    run.reaches("RUNNING")
    podman("rm", "--force", "--time=0", PREFECT)
    assert stack.server.process
    stack.server.process.wait()
    stack.server.start()
    for _ in range(2):
        renewed_before = leases()
        wait_until(lambda before=renewed_before: leases() != before)  # type: ignore[misc]
    assert run.record["state_type"] == "RUNNING"
    run.cancel()
    run.ends("CANCELLED")


def leases() -> Any:
    """When each lease ends, by its id."""
    return json.loads(podman("exec", PREFECT, "cat", "/state/prefect/concurrency_leases/expirations.json"))
