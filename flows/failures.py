"""What is retried, what an outage of Prefect's server may not do to a run, and how a failure reads."""

import contextvars
import functools
import logging
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import httpx
from mlflow.exceptions import MlflowException
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas import State, TaskRun
from prefect.concurrency import _leases
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled
from prefect.tasks import exponential_backoff

from serving.model.errors import (
    RegistryError,
    UserError,
    WeightsError,
    full_disk,
    in_words,
    is_forbidden,
    without_credentials,
)

P = ParamSpec("P")
T = TypeVar("T")

TEMPORARY = (RegistryError, MlflowException, OSError)
# A lease is for five minutes, and Prefect would renew it after 225 seconds: what is left of it may be too short for an
# outage. Renewed every half minute, it outlives three minutes without the server.
_leases._RENEWAL_FRACTION = 0.1
SECONDS_BETWEEN_LOOKS = 10


def is_temporary(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is retried: a registry or a storage may come back, a wrong setting stays wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TEMPORARY) and not full_disk(error) and not is_forbidden(error)


# For what asks a registry or a storage, which may be away for a while.
RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_temporary,
}


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


class in_words_of_the_flow(ContextDecorator):  # a class: generators can't be pickled
    """Lets what a user has to mend speak of the flow's parameters, such as `model`, instead of Hydra's keys."""

    def __init__(self, model: str = 'models=["{}"]') -> None:
        self._model = model

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if isinstance(error, UserError | WeightsError):
            error.args = (_in_parameters(str(error), self._model),)


def _in_parameters(message: str, model: str) -> str:
    """`data.root=PATH` is data=PATH, and every other key is given by overrides; those of a space stand there."""
    start = r"(?<![\w./\"-])"  # not within a path, nor what is translated already; a path as a value may have spaces
    for hydra_s, ours in (
        (rf"{start}data=folder data\.root=", "data="),
        (rf"{start}data\.root=", "data="),
        (rf"{start}model=([\w.]+)", model.format(r"\1")),
        (
            rf"{start}((?:data|transforms|model|trainer|export)\.[\w.]+=(?!/)[^\s,;:(){{}}\[\]\"]*\w)",
            r"\1" if message.startswith("space=") else r'overrides=["\1"]',
        ),
        ("; --help lists them", "; python -m training.train --help lists them"),
    ):
        message = re.sub(hydra_s, ours, message)
    return message


class _ForPeople(logging.Filter):
    """Leaves out credentials, and the traceback of what has words for people: the message says it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_credentials(record.getMessage()), ()
        error = record.exc_info and record.exc_info[1]
        if error and in_words(error):
            record.exc_info = None
        elif error:  # formatters take the text where there is one
            record.exc_text = without_credentials("".join(traceback.format_exception(error)).rstrip())
        return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(_ForPeople())
