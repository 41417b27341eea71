"""The stack's files, without an engine: their schema, and what every service owes the others and its machine."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.worker import SECONDS_TO_STOP
from serving.online import metrics
from tests.helpers.servers import mlflow_server, shell_environment
from tests.helpers.state import ROOT
from tests.helpers.waiting import free_port

INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("localhost/cifar10-serve:latest", "localhost/cifar10-train:latest")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_file_is_what_compose_reads(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(INFRA / name)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_checked_and_started_after_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["image"] in OURS or re.search(r":v?\d+\.\d+", service["image"]), "an image is of a release"
    if service["image"] != OURS[0]:  # which has its check in the image
        assert service["healthcheck"]["test"]
    for other, needed in service.get("depends_on", {}).items():
        assert needed == {"condition": "service_healthy"}
        assert other in SERVICES
    # Whoever is talked to by name comes first.
    talked_to = set(re.findall(r"(?:@|//)([a-z]+)[:/]", str(service.get("environment", {})))) & set(SERVICES)
    assert talked_to <= set(service.get("depends_on", {}))


def test_only_what_people_open_is_published_and_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"service", "mlflow", "prefect", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_the_addresses_that_people_open_follow_the_ports() -> None:
    published = {port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])}
    told = [str(value) for service in SERVICES.values() for value in service.get("environment", {}).values()]
    opened = [value.removeprefix("http://") for value in told if value.startswith("http://127.0.0.1")]
    assert len(opened) == 4
    assert set(opened) <= published
    assert SERVICES["worker"]["environment"]["PREFECT_UI_URL"] == SERVICES["prefect"]["environment"]["PREFECT_UI_URL"]
    assert SERVICES["prefect"]["environment"]["PREFECT_SERVER_UI_API_URL"] == "/api"


def test_ours_run_with_a_read_only_root_and_without_privileges() -> None:
    ours = {name: service for name, service in SERVICES.items() if service["image"] in OURS}
    assert set(ours) == {"mlflow", "prefect", "worker", "upkeep", "service"}
    for service in ours.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "/tmp" in service["tmpfs"]
    assert [name for name, service in ours.items() if "user" in service] == ["worker"]


def test_no_service_of_ours_leaves_a_volume_without_a_name_behind() -> None:
    """As an engine makes one for each VOLUME of an image that nothing is mounted at."""
    for name, service in SERVICES.items():
        if service["image"].startswith("localhost/"):
            mounted = {volume.rpartition(":")[2] for volume in service.get("volumes", [])} | set(service["tmpfs"])
            assert {"/state", "/tmp"} <= mounted, name


def test_runs_and_worker_share_a_network_and_a_volume() -> None:
    job = yaml.safe_load((INFRA / "prefect.yaml").read_text())["definitions"]["in_container"]["work_pool"]
    assert job["job_variables"]["image"] == SERVICES["worker"]["image"]
    assert job["job_variables"]["volumes"] == [f"{COMPOSE['volumes']['state']['name']}:/state"]
    assert SERVICES["worker"]["environment"]["CONTAINER_NETWORK"] == COMPOSE["networks"]["default"]["name"]


def test_clean_ups_have_what_they_free_as_the_user_of_the_runs() -> None:
    upkeep = SERVICES["upkeep"]
    address = "MLFLOW_BACKEND_STORE_URI"
    assert upkeep["environment"][address] == SERVICES["mlflow"]["environment"][address]
    assert [name for name in SERVICES if address in SERVICES[name].get("environment", {})] == ["mlflow", "upkeep"]
    assert upkeep["volumes"] == SERVICES["worker"]["volumes"]
    (weekly,) = (
        each
        for each in yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]
        if each["work_pool"]["name"] == "upkeep"
    )
    assert weekly["entrypoint"] == "flows/clean_up.py:clean_up"
    assert "infra/deploy.sh upkeep process " in upkeep["command"][2]
    assert "user" not in upkeep, "a lock that root makes could not be taken by the runs"


def test_what_prefect_knows_of_runs_at_work_outlives_its_container() -> None:
    assert "prefect:/state" in SERVICES["prefect"]["volumes"]
    assert "PREFECT_HOME=/state/prefect" in (ROOT / "Dockerfile.train").read_text()


def test_the_worker_has_the_time_to_cancel_its_runs() -> None:
    for name in ("worker", "upkeep"):
        assert SERVICES[name]["stop_grace_period"] == f"{SECONDS_TO_STOP + 15}s"


def test_make_down_stops_the_worker_before_all_else(tmp_path: Path) -> None:
    said = tmp_path / "compose"
    said.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "worker | stopping: run red-fox is cancelled"\n')
    said.chmod(0o755)
    command = ["make", "down", f"COMPOSE={said}", "ENGINE=true"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "stopping: run red-fox is cancelled" in result.stdout
    asked = [line.split()[2] for line in (tmp_path / "asked").read_text().splitlines()]
    assert (asked[0], asked[-1]) == ("stop", "down")


# An engine with two containers of the stack and one of a run, and compose as `podman-compose` does it, which keeps a
# container of an older build.
ENGINE = """#!/bin/sh
cd {directory}
case "$*" in
    "ps --all"*) ls stack ;;
    "ps --quiet"*) ls runs ;;
    "inspect "*) cat "stack/$4" "runs/$4" 2>/dev/null | sed "s/^/$4 /; s/$/ ours/" ;;
    "image inspect "*) cat newest ;;
    "compose "*|*"compose.yaml"*) echo "$*" >> asked ;;
esac
case "$*" in
    *compose*" down") rm -f stack/* ;;
    *compose*" up --detach") for name in mlflow worker; do {keeps} cp newest "stack/$name"; done ;;
esac
"""


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_make_up_after_a_new_build_leaves_no_container_of_the_old_one(tmp_path: Path, engine: str) -> None:
    """Done by stand-ins for the engines: what they are asked, and what they are known to do."""
    keeps = '[ -e "stack/$name" ] ||' if engine == "podman" else ""
    (tmp_path / "bin").mkdir()
    for name in ("podman", "podman-compose", "docker"):
        program = tmp_path / "bin" / name
        program.write_text(ENGINE.format(directory=tmp_path, keeps=keeps))
        program.chmod(0o755)
    for file in ("stack/mlflow", "stack/worker", "runs/red-fox", "newest"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("first\n")

    def make_up() -> tuple[list[str], str]:
        """What compose was asked to do, and what is said."""
        (tmp_path / "asked").unlink(missing_ok=True)
        environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        command = ["make", "up", f"ENGINE={engine}"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        words = re.findall(r"compose\.yaml +(\w+)", (tmp_path / "asked").read_text())
        return words, result.stdout

    asked, said = make_up()
    assert asked == ["up"], "nothing is new: all goes on"
    assert "older image" not in said
    (tmp_path / "newest").write_text("second\n")
    asked, said = make_up()
    assert {file.read_text() for file in (tmp_path / "stack").iterdir()} == {"second\n"}
    if engine == "podman":
        assert (asked[0], asked[-1]) == ("stop", "up"), "the worker cancels its runs first"
    assert re.findall(r"of an older image: (.+)", said) == ["red-fox"], "a run that is at work"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory in which `make env` may write."""
    (tmp_path / "infra").mkdir()
    for name in ("Makefile", "infra/compose.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make_env(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "env"], cwd=directory, capture_output=True, text=True)


def test_make_env_writes_a_random_value_for_every_secret_once(checkout: Path) -> None:
    assert make_env(checkout).returncode == 0
    file = checkout / "infra" / ".env"
    secrets = dict(line.split("=") for line in file.read_text().splitlines())
    assert set(secrets) == set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in secrets.values())
    assert len(set(secrets.values())) == len(secrets)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    again = make_env(checkout)
    assert again.returncode != 0
    assert "infra/.env is there already" in again.stderr
    assert dict(line.split("=") for line in file.read_text().splitlines()) == secrets


def test_no_secret_has_a_default() -> None:
    variables = set(re.findall(r"\$\{(\w+):-", (INFRA / "compose.yaml").read_text()))
    ports = {"PORT", "MLFLOW_PORT", "PREFECT_PORT", "GRAFANA_PORT"}
    engine, mlflow = {"ENGINE_SOCKET", "ENGINE_GROUP"}, {"MLFLOW_ALLOWED_HOST"}
    model = {"MODEL_NAME", "CHECKPOINTS", "RAY_ADDRESS", "SERVING_PRECISION", "SERVING_PROVIDERS", "SERVING_MAX_BATCH"}
    assert variables == {*ports, *engine, *mlflow, *model}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "mlflow.example.org"])
def test_mlflow_answers_under_the_name_that_the_setting_gives_it(name: str, tmp_path: Path) -> None:
    """And starts without one."""
    given = SERVICES["mlflow"]["environment"]
    security = {key: given[key].replace("${MLFLOW_ALLOWED_HOST:-}", name) for key in given if "_SERVER_" in key}
    port = free_port()
    environment = {**shell_environment(tmp_path), **security}
    with mlflow_server(tmp_path, environment, port, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")):

        def asked_from_the_page_at(host: str) -> int:
            headers = {"Host": host, "Origin": f"https://{host}"}
            url = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search"
            return httpx.post(url, json={"max_results": 1}, headers=headers, timeout=60).status_code

        hosts = "mlflow.example.org", f"127.0.0.1:{port}", "other.example.org"
        assert [asked_from_the_page_at(host) for host in hosts] == [200 if name else 403, 200, 403]


def test_the_dashboard_asks_for_metrics_that_the_service_has() -> None:
    asked = set(re.findall(r"classifier_[a-z_]+", (INFRA / "grafana" / "service.json").read_text()))
    told = set(re.findall(r"# TYPE (\w+)", metrics.exposition().decode()))
    assert asked
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= told
