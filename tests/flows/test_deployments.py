"""`infra/deploy.sh`, as every start of a worker runs it, at a Prefect server of its own."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from tests.helpers.retraining import hurry_automation
from tests.helpers.servers import prefect_client, prefect_server, shell_environment
from tests.helpers.state import ROOT
from tests.helpers.waiting import free_port, wait_until

pytestmark = pytest.mark.slow

Change = Callable[[dict[str, dict[str, Any]]], None]


class Checkout:
    """The checkout with a copy of infra/, whose deployments a new commit may change."""

    def __init__(self, directory: Path, environment: dict[str, str], api: httpx.Client) -> None:
        self.api = api
        self.directory = directory
        self._environment = {**environment, "CONTAINER_NETWORK": "host", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
        directory.mkdir()
        shutil.copytree(ROOT / "infra", directory / "infra")
        for name in ("flows", "training", "serving", "pyproject.toml"):
            (directory / name).symlink_to(ROOT / name)

    def run(self, *command: str) -> str:
        """What it says."""
        result = subprocess.run(command, cwd=self.directory, env=self._environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def change(self, change: Change) -> None:
        """Changes the file's entries, which it gives by FLOW/NAME."""
        path = self.directory / "infra" / "prefect.yaml"
        file = yaml.safe_load(path.read_text())
        flow = {each["entrypoint"]: each["entrypoint"].partition(":")[2] for each in file["deployments"]}
        entries = {f"{flow[each['entrypoint']]}/{each['name']}": copy.deepcopy(each) for each in file["deployments"]}
        change(entries)
        path.write_text(yaml.safe_dump({**file, "deployments": [*entries.values()]}))

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/deployments/name/{name}").raise_for_status().json()
        return found

    def set(self, name: str, **values: Any) -> None:
        """As the page does it."""
        self.api.patch(f"/deployments/{self.deployment(name)['id']}", json=values).raise_for_status()

    def set_schedule(self, name: str, **values: Any) -> None:
        deployment = self.deployment(name)
        (schedule,) = deployment["schedules"]
        url = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
        self.api.patch(url, json=values).raise_for_status()

    def schedules(self, name: str) -> dict[str | None, tuple[str, bool]]:
        """Cron and whether it is active, by slug."""
        found = self.deployment(name)["schedules"]
        return {each["slug"]: (each["schedule"]["cron"], each["active"]) for each in found}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """One that is deployed, with a second schedule of `nightly`."""
    directory, port = tmp_path_factory.mktemp("deployments"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**shell_environment(directory), "PREFECT_API_URL": url}
    with prefect_server(directory, environment, port), prefect_client(url) as api:
        checkout = Checkout(directory / "checkout", environment, api)
        noon = {"slug": "noon", "cron": "0 12 * * *", "timezone": "Europe/Berlin"}
        checkout.change(lambda entries: entries["batch_predict/nightly"]["schedules"].append(noon))
        checkout.run("infra/deploy.sh", "containers", "docker")
        yield checkout


def test_what_was_set_on_the_page_stays_and_what_left_the_file_is_gone(checkout: Checkout) -> None:
    # Paused, moved, joined by another one, and with data of one's own.
    checkout.set("retrain/weekly", parameters={"data": "/state/pictures.zip", "models": ["resnet18"]})
    checkout.set_schedule("retrain/weekly", active=False, schedule={"cron": "0 5 * * 6", "timezone": "Asia/Tokyo"})
    weekly = checkout.deployment("retrain/weekly")
    more = [{"schedule": {"cron": "0 7 1 * *"}, "active": True}]
    checkout.api.post(f"/deployments/{weekly['id']}/schedules", json=more).raise_for_status()
    checkout.set("rollback/container", paused=True)
    # What the flow took in an earlier version.
    checkout.set("retrain/container", enforce_parameter_schema=False, parameters={"gone": 1, "data": "digits"})
    mine = {**{name: weekly[name] for name in ("flow_id", "entrypoint", "work_pool_name")}, "name": "mine"}
    checkout.api.post("/deployments/", json=mine).raise_for_status()

    def commit(entries: dict[str, dict[str, Any]]) -> None:
        del entries["release/container"]
        entries["retrain/weekly"]["parameters"] |= {"models": ["efficientnet_lite1"], "experiment": "reference"}
        nightly = entries["batch_predict/nightly"]
        nightly["schedules"] = [{**nightly["schedules"][0], "cron": "0 2 * * *"}]
        nightly["parameters"]["target"] = "/state/nightly.parquet"

    checkout.change(commit)
    said = checkout.run(sys.executable, "-m", "infra.deployments", "pool=containers")

    weekly = checkout.deployment("retrain/weekly")
    assert weekly["parameters"] == {"data": "/state/pictures.zip", "models": ["resnet18"], "experiment": "reference"}
    assert checkout.schedules("retrain/weekly") == {"weekly": ("0 5 * * 6", False), None: ("0 7 1 * *", True)}
    assert checkout.deployment("rollback/container")["paused"]
    nightly = checkout.deployment("batch-predict/nightly")
    assert nightly["parameters"]["target"] == "/state/nightly.parquet"
    assert checkout.schedules("batch-predict/nightly") == {"nightly": ("0 2 * * *", True)}
    assert "gone" not in checkout.deployment("retrain/container")["parameters"]
    assert checkout.deployment("retrain/container")["parameters"]["data"] == "digits"
    there = {(each["entrypoint"], each["name"]) for each in checkout.api.post("/deployments/filter", json={}).json()}
    assert ("flows/release.py:release", "container") not in there
    assert ("flows/retrain.py:retrain", "mine") in there
    removed = [line for line in said.splitlines() if line.startswith("removed")]
    assert len(removed) == 3, said
    for what in ("schedule noon", "parameter gone", "deployment flows/release.py:release container"):
        assert any(what in line for line in removed), removed
    for name in ("retrain/weekly", "retrain/container", "batch-predict/nightly"):
        deployment = checkout.deployment(name)
        assert deployment["enforce_parameter_schema"]
        assert deployment["parameter_openapi_schema"]["additionalProperties"] is False


def test_a_run_that_is_given_back_has_not_crashed_and_a_silent_one_has(checkout: Checkout) -> None:
    """Of two runs that were alive, one waits for a new container; the other is not heard of for ten seconds."""
    hurry_automation(checkout.api, seconds=10)
    path = f"/deployments/{checkout.deployment('batch-predict/container')['id']}/create_flow_run"
    given = {"parameters": {"source": "a", "target": "b"}, "state": {"type": "RUNNING"}}
    given_back, silent = (checkout.api.post(path, json=given).raise_for_status().json()["id"] for _ in range(2))
    for run in (given_back, silent):
        alive = {"event": "prefect.flow-run.heartbeat", "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"}}
        now = {"occurred": datetime.now(UTC).isoformat(), "id": str(uuid4())}
        checkout.api.post("/events", json=[{**alive, **now}]).raise_for_status()
    waits = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    checkout.api.post(f"/flow_runs/{given_back}/set_state", json={"state": waits, "force": True}).raise_for_status()

    def state(run: str) -> Any:
        return checkout.api.get(f"/flow_runs/{run}").json()["state_name"]

    wait_until(lambda: state(silent) == "Crashed")
    assert state(given_back) == "AwaitingRetry"
