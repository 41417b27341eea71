"""What nobody needs any more is freed: python -m flows.clean_up dry_run=true"""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import docker
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from pydantic import Field

from flows.arguments import print_table, run_command
from flows.failures import RETRIES, cancellable
from flows.rollback import lock_everywhere
from serving.model.errors import without_credentials
from serving.model.registry import registered_name
from training.release import retention
from training.release.retention import Freed

EXAMPLE = "python -m flows.clean_up keep_versions=10 keep_days=30 dry_run=true"
FLOWS = ["retrain", "batch-predict", "rollback", "release", "clean-up", "search"]
LABEL = "cifar10-classifier=run"  # of a run's container: infra/prefect.yaml
SHOWN = 5  # names of what is freed

Row = dict[str, Any]
Count = Annotated[int, Field(ge=0)]


@task(task_run_name="versions and MLflow runs of {name}", **RETRIES)
def free_models(
    name: str, keep_champions: int, keep_versions: int, keep_runs: int, before: datetime, dry_run: bool
) -> list[Row]:
    """Frees versions, checkpoints, and the runs that neither a version nor a checkpoint needs any more."""
    versions = retention.free_versions(name, keep_champions, keep_versions, dry_run, lock_everywhere)
    checkpoints, unfinished = retention.free_checkpoints(before, dry_run)
    runs, freed = retention.free_runs(name, versions, keep_runs, before, unfinished, dry_run)
    remark = f"marked as deleted alone: {retention.DATABASE}, the address of MLflow's database, lets them be freed"
    return [
        row(f"versions of {name}", [Freed(version, 0) for version in versions], "their files are those of their runs"),
        row("checkpoints", checkpoints),
        row("MLflow runs", runs, "" if freed else remark),
    ]


@task(task_run_name="caches")
def free_caches(before: datetime, dry_run: bool) -> list[Row]:
    return [row("caches", retention.free_caches(before, dry_run))]


@task(task_run_name="Prefect's runs")
def free_flow_runs(before: datetime, dry_run: bool) -> list[Row]:
    """Deletes the runs of our flows that ended before a time, with their logs."""
    ended = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*TERMINAL_STATES])),
        end_time=FlowRunFilterEndTime(before_=before),
    )
    flows = FlowFilter(name=FlowFilterName(any_=FLOWS))
    found: list[FlowRun] = []
    with get_client(sync_client=True) as api:
        while page := api.read_flow_runs(flow_filter=flows, flow_run_filter=ended, offset=len(found)):
            found += page
        for run in [] if dry_run else found:
            api.delete_flow_run(run.id)
    return [row("Prefect's runs", [Freed(run.name, 0) for run in found])]


@task(task_run_name="containers")
def free_containers(before: datetime, dry_run: bool) -> list[Row]:
    """Removes the containers of ended runs from the engine."""
    try:
        engine = docker.from_env()
        ended = {"label": LABEL, "status": "exited"}
        containers = [
            each
            for each in engine.api.containers(all=True, size=True, filters=ended)
            if each["Created"] < before.timestamp()
        ]
        for each in [] if dry_run else containers:
            with contextlib.suppress(docker.errors.NotFound):  # `make down` was quicker
                engine.api.remove_container(each["Id"], v=True)
    except (docker.errors.DockerException, OSError) as error:
        return [row("containers", [], f"left out: the container engine does not answer ({error})")]
    return [row("containers", [Freed(each["Names"][0].lstrip("/"), each.get("SizeRw") or 0) for each in containers])]


def row(what: str, freed: Sequence[Freed], remark: str = "") -> Row:
    """A row of the table: how many things of a kind are freed, with their bytes, and which."""
    names = ", ".join(each.name for each in freed[:SHOWN]) + (", ..." if len(freed) > SHOWN else "")
    remarks = "; ".join(filter(None, (names, remark if freed or remark.startswith("left out") else "")))
    return {
        "what": what,
        "number": len(freed),
        "MB": round(sum(each.bytes for each in freed) / 1e6, 1),
        "which": without_credentials(remarks),
    }


@flow(name="clean-up")
@cancellable
def clean_up(
    name: str = "",
    keep_champions: Count = 5,
    keep_versions: Count = 10,
    keep_runs: Count = 20,
    keep_days: Annotated[int, Field(ge=1)] = 30,
    containers: bool = False,
    dry_run: bool = False,
) -> list[Row]:
    """Frees what nobody needs any more: versions, runs, checkpoints, caches.

    A version that has an alias stays, and a run that a version refers to, of whichever registered model; what is
    younger than `keep_days` and what is in use stay as well.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
        keep_champions: how many champions before the present one are kept, to which a rollback can go back.
        keep_versions: how many of the newest versions are kept.
        keep_runs: how many of the newest MLflow runs are kept.
        keep_days: how long runs, checkpoints, and caches since their last use are kept.
        containers: whether to ask the container engine as well, for the containers of ended runs.
        dry_run: whether to say only what would be freed.

    Returns:
        What is freed: a row a kind.
    """
    before = datetime.now(UTC) - timedelta(days=keep_days)
    rows = free_models(registered_name(name), keep_champions, keep_versions, keep_runs, before, dry_run)
    rows += free_caches(before, dry_run)
    rows += free_flow_runs(before, dry_run)
    left_out = "left out: containers=true asks the container engine, where its socket is"
    rows += free_containers(before, dry_run) if containers else [row("containers", [], left_out)]
    description = "What would be freed: a dry run" if dry_run else "What is freed"
    create_table_artifact(rows, key="clean-up", description=description)
    for each in rows:
        get_run_logger().info("%s: %s, %s MB %s", each["what"], each["number"], each["MB"], each["which"])
    return rows


if __name__ == "__main__":
    print_table(run_command(clean_up, EXAMPLE))
