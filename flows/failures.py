"""What is worth another try, and how a failure reads."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import Task
from prefect.client.schemas import State, TaskRun
from prefect.tasks import exponential_backoff

from serving.errors import StartError
from training.errors import UserError


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is tried again: a registry or a storage may come back, a wrong setting does not mend."""
    return isinstance(state.result(raise_on_failure=False), (OSError, MlflowException))


# For what asks a registry or a storage, which may be away for a while.
RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}


@contextmanager
def start_errors_in_words() -> Iterator[None]:
    """Makes a `UserError` of why serving can't start, so that it reads as one everywhere."""
    try:
        yield
    except StartError as error:
        raise UserError(str(error)) from error


class _WithoutTraceback(logging.Filter):
    """Leaves out the traceback of what the user can mend: the message says it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], UserError):
            record.exc_info = None
        return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(_WithoutTraceback())
