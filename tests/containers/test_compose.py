"""The stack's files, without an engine: their schema, and what every service owes the others and its machine."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.worker import SECONDS_TO_STOP
from serving.online import metrics
from tests.helpers.state import ROOT

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


def test_ours_run_with_a_read_only_root_and_without_privileges() -> None:
    ours = {name: service for name, service in SERVICES.items() if service["image"] in OURS}
    assert set(ours) == {"mlflow", "prefect", "worker", "service"}
    for service in ours.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "/tmp" in service["tmpfs"]
    assert [name for name, service in ours.items() if "user" in service] == ["worker"]


def test_runs_and_worker_share_a_network_and_a_volume() -> None:
    job = yaml.safe_load((INFRA / "prefect.yaml").read_text())["definitions"]["in_container"]["work_pool"]
    assert job["job_variables"]["image"] == SERVICES["worker"]["image"]
    assert job["job_variables"]["volumes"] == [f"{COMPOSE['volumes']['state']['name']}:/state"]
    assert SERVICES["worker"]["environment"]["CONTAINER_NETWORK"] == COMPOSE["networks"]["default"]["name"]


def test_what_prefect_knows_of_runs_at_work_outlives_its_container() -> None:
    assert "prefect:/state" in SERVICES["prefect"]["volumes"]
    assert "PREFECT_HOME=/state/prefect" in (ROOT / "Dockerfile.train").read_text()


def test_the_worker_has_the_time_to_cancel_its_runs() -> None:
    assert SERVICES["worker"]["stop_grace_period"] == f"{SECONDS_TO_STOP + 15}s"


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
    assert variables == {"PORT", "MLFLOW_PORT", "PREFECT_PORT", "GRAFANA_PORT", "ENGINE_SOCKET", "MODEL_NAME"}


def test_the_dashboard_asks_for_metrics_that_the_service_has() -> None:
    asked = set(re.findall(r"classifier_[a-z_]+", (INFRA / "grafana" / "service.json").read_text()))
    told = set(re.findall(r"# TYPE (\w+)", metrics.exposition().decode()))
    assert asked
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= told
