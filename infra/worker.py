"""Prefect's worker, which leaves no run behind: not one that died before it, nor one of its own when it stops.

`prefect worker start` kills its runs when it is told to stop, before they can say anything. Kubernetes' Jobs go on
without their worker, and are left alone.
"""

import asyncio
import contextlib
import signal
from typing import Literal

import anyio
import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.states import Cancelling
from prefect.utilities.importtools import from_qualified_name
from prefect.workers.base import BaseWorker

from flows.arguments import run_command
from serving.model.errors import UserError

EXAMPLE = "python -m infra.worker pool=local type=process"
Kind = Literal["process", "docker", "kubernetes"]
# The last one's package is installed by `make scale`.
WORKERS: dict[Kind, str] = {
    "process": "prefect.workers.process.ProcessWorker",
    "docker": "prefect_docker.worker.DockerWorker",
    "kubernetes": "prefect_kubernetes.worker.KubernetesWorker",
}
# The state of a run that somebody is at work on, or was.
AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
ASKED_AFTER = "run-asked-after"  # infra/automations.yaml waits for an answer
SECONDS_TO_STOP = 75  # Prefect gives a cancelled run half a minute; infra/compose.yaml gives the worker longer
SECONDS_TO_SAY_SO = 10


def work(pool: str, type: Kind, healthcheck: bool = False) -> None:
    """Runs what is asked of a work pool; SIGTERM or Ctrl-C cancels the runs that it has started, and then ends it.

    Args:
        pool: the work pool.
        type: what a run is: a process, a container, or a Job of Kubernetes, which is not cancelled.
        healthcheck: whether to answer at port 8080 while it works.
    """
    try:
        worker = from_qualified_name(WORKERS[type])
    except ModuleNotFoundError as error:
        raise UserError(f"type={type}: {error}; install requirements/scale.txt (make scale)") from error
    anyio.run(_work, worker(work_pool_name=pool), pool, healthcheck)


async def _work(worker: BaseWorker, pool: str, healthcheck: bool) -> None:
    stopping = anyio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    poll = worker.get_and_submit_flow_runs

    async def poll_unless_stopping() -> list[FlowRun]:
        return [] if stopping.is_set() else await poll()

    worker.get_and_submit_flow_runs = poll_unless_stopping  # type: ignore[method-assign]
    async with get_client() as client, anyio.create_task_group() as group:
        await _ask_after_runs(client, pool)
        group.start_soon(worker.start, False, healthcheck)
        await stopping.wait()
        if worker.type == "kubernetes":
            group.cancel_scope.cancel()
            return
        with anyio.move_on_after(SECONDS_TO_STOP) as limit:
            await _cancel_runs(client, pool, worker.name)
        if limit.cancelled_caught:
            print("stopping: what is still at work is told to stop, and not cancelled in time by Prefect", flush=True)
            await anyio.to_thread.run_sync(_stop_processes)
        group.cancel_scope.cancel()


async def _runs_at_work(client: PrefectClient, pool: str) -> list[FlowRun]:
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=AT_WORK))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )


async def _ask_after_runs(client: PrefectClient, pool: str) -> None:
    """A run that died together with the server is one of which the server waits for nothing."""
    for run in await _runs_at_work(client, pool):
        emit_event(ASKED_AFTER, resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"})


async def _cancel_runs(client: PrefectClient, pool: str, worker: str) -> None:
    """Cancels what this worker has started, says so, and waits until it is over."""
    told = set()
    while mine := [run for run in await _runs_at_work(client, pool) if run.labels.get("prefect.worker.name") == worker]:
        for run in mine:
            if run.id not in told:
                words = "is cancelled; asked for again, it goes on from its checkpoint"
                print(f"stopping: run {run.name} {words}", flush=True)
                await client.set_flow_run_state(run.id, Cancelling(message="Its worker was told to stop."))
                told.add(run.id)
        await anyio.sleep(1)


def _stop_processes() -> None:
    """Prefect's server may be away: the runs that are processes can still tell MLflow."""
    runs = psutil.Process().children(recursive=True)
    for process in runs:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(runs, SECONDS_TO_SAY_SO)


if __name__ == "__main__":
    run_command(work, EXAMPLE)
