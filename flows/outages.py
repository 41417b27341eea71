"""What an outage of Prefect's server may not do to a run: end it, or make it deaf to being cancelled."""

import contextvars
import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency import _leases
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

P = ParamSpec("P")
T = TypeVar("T")

# A lease is for five minutes, and Prefect would renew it after 225 seconds: what is left of it may be too short for an
# outage. Renewed every half minute, it outlives three minutes without the server.
_leases._RENEWAL_FRACTION = 0.1
SECONDS_BETWEEN_LOOKS = 10


def cancellable(function: Callable[P, T]) -> Callable[P, T]:
    """Has a flow that a worker runs look itself whether it is being cancelled.

    Whoever started it is told so by Prefect's server, but stops listening after some half a minute without it.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not deployment.id:
            return function(*args, **kwargs)
        over, cancelled = threading.Event(), threading.Event()
        context = contextvars.copy_context()
        watcher = threading.Thread(target=context.run, args=(_watch, UUID(flow_run.id), over, cancelled), daemon=True)
        watcher.start()
        try:
            return function(*args, **kwargs)
        except TerminationSignal:
            if not cancelled.is_set():
                raise
            return Cancelled(message="Cancelled by the run itself, which nobody else had told.")  # type: ignore[return-value]
        finally:
            over.set()

    return run


def _watch(run_id: UUID, over: threading.Event, cancelled: threading.Event) -> None:
    """Ends this process by SIGTERM once its run has been Cancelling at two looks: Prefect had its turn."""
    before = False
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        try:
            with get_client(sync_client=True) as client:  # a new one does not wait for a server that is away
                state = client.read_flow_run(run_id).state
        except httpx.HTTPError:
            continue
        now = bool(state and state.is_cancelling())
        if before and now:
            cancelled.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return
        before = now
