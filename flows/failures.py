"""What is retried, and how a failure reads."""

import logging
import traceback
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import Task
from prefect.client.schemas import State, TaskRun
from prefect.tasks import exponential_backoff

from serving.model.errors import RegistryError, full_disk, in_words, is_forbidden, without_credentials

TEMPORARY = (RegistryError, MlflowException, OSError)


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
