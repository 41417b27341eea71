"""Deploys what infra/prefect.yaml has for a work pool, and keeps what people have set on Prefect's page or by its API.

`prefect deploy` alone resets parameters and schedules, and leaves on the server what is no longer in the file. Nor does
it let the API refuse parameters that a flow does not have: a run that gets one would crash before its flow begins.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.schema_tools import validate
from prefect.variables import Variable

from flows.arguments import run_command

EXAMPLE = "python -m infra.deployments pool=local"
FILE = Path("infra/prefect.yaml")
# What a run is, where the work pool's own type does not say it all.
JOBS = {"kubernetes": Path("infra/kubernetes/job.yaml")}
Entry = dict[str, Any]  # a deployment as the file has it


def deploy(pool: str) -> None:
    """Deploys what the file has for a work pool.

    What was set on the server stays, everything else becomes what the file says, and what has left the file is removed.

    Args:
        pool: the work pool, which must be there.
    """
    file = yaml.safe_load(FILE.read_text())
    entries = {_key(entry["entrypoint"], entry["name"]): entry for entry in file["deployments"]}
    entries = {key: entry for key, entry in entries.items() if entry["work_pool"]["name"] == pool}
    # What the file said the last time: where the server has something else, somebody has set that.
    variable = f"deployed_to_{pool}"
    last: dict[str, Entry] = Variable.get(variable, default={})
    with get_client(sync_client=True) as api:
        if job := JOBS.get(api.read_work_pool(pool).type):
            api.update_work_pool(pool, WorkPoolUpdate(base_job_template=yaml.safe_load(job.read_text())))
        there = _read(api, {**last, **entries})
        kept = [
            _kept(entry, there[key], last.get(key, {})) if key in there else entry for key, entry in entries.items()
        ]
        _prefect_deploy({**file, "deployments": kept})
        for key, deployment in _read(api, {**last, **entries}).items():
            if key in entries:
                _refuse_unknown_parameters(api, key, deployment)
                if key in there:
                    _update_schedules(api, key, deployment, entries[key], last.get(key, {}))
            elif deployment.work_pool_name == pool:
                api.delete_deployment(deployment.id)
                print(f"removed deployment {key}: it is no longer in {FILE}")
    said = {key: {part: entry.get(part) for part in ("parameters", "schedules")} for key, entry in entries.items()}
    Variable.set(variable, said, overwrite=True)


def _key(entrypoint: str | None, name: str) -> str:
    return f"{entrypoint} {name}"


def _read(api: SyncPrefectClient, entries: dict[str, Entry]) -> dict[str, DeploymentResponse]:
    """Those of the entries that the server has."""
    names = sorted({key.rpartition(" ")[2] for key in entries})
    found = api.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)))
    return {key: each for each in found if (key := _key(each.entrypoint, each.name)) in entries}


def _kept(entry: Entry, deployment: DeploymentResponse, last: Entry) -> Entry:
    """The entry with what was set on the server; without schedules, as those that are there then stay as they are.

    Whether a new version of the flow still takes those parameters is known once it is deployed.
    """
    before = (last.get("parameters") or {}).items()
    set_there = {name: value for name, value in deployment.parameters.items() if (name, value) not in before}
    parameters = {**entry.get("parameters", {}), **set_there}
    as_there = {"paused": deployment.paused, "parameters": parameters}
    return {**entry, **as_there, "schedules": [], "enforce_parameter_schema": False}


def _prefect_deploy(file: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as temporary:
        yaml.safe_dump(file, temporary)
        temporary.flush()
        command = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", temporary.name]
        if code := subprocess.run(command).returncode:
            sys.exit(code)


def _refuse_unknown_parameters(api: SyncPrefectClient, key: str, deployment: DeploymentResponse) -> None:
    schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
    taken = {
        name: value
        for name, value in deployment.parameters.items()
        if not validate({name: value}, schema, ignore_required=True)
    }
    for name in deployment.parameters.keys() - taken:
        print(f"removed parameter {name} of {key}: the flow no longer takes its value")
    update = DeploymentUpdate(parameters=taken, parameter_openapi_schema=schema, enforce_parameter_schema=True)
    api.update_deployment(deployment.id, update)


def _update_schedules(
    api: SyncPrefectClient, key: str, deployment: DeploymentResponse, entry: Entry, last: Entry
) -> None:
    """A schedule has its time from the file, unless that was changed; whether it is paused is the server's alone."""
    there = {each.slug: each for each in deployment.schedules}
    now, before = _schedules(entry), _schedules(last)
    for slug, schedule in now.items():
        if slug in there and there[slug].schedule == before.get(slug) != schedule:
            api.update_deployment_schedule(deployment.id, there[slug].id, schedule=schedule)
        elif slug not in there and slug not in before:
            api.create_deployment_schedules(deployment.id, [DeploymentScheduleCreate(schedule=schedule, slug=slug)])
    for slug in (before.keys() - now) & there.keys():
        api.delete_deployment_schedule(deployment.id, there[slug].id)
        print(f"removed schedule {slug} of {key}: it is no longer in {FILE}")


def _schedules(entry: Entry) -> dict[str | None, CronSchedule]:
    return {
        each["slug"]: CronSchedule(cron=each["cron"], timezone=each["timezone"])
        for each in entry.get("schedules") or []
    }


if __name__ == "__main__":
    run_command(deploy, EXAMPLE)
