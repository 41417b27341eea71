"""What is retried, and how a failure reads."""

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import Task
from prefect.client.schemas import State, TaskRun
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


@contextmanager
def in_words_of_the_flow() -> Iterator[None]:
    """Lets what a user has to mend speak of the flow's parameters instead of Hydra's keys."""
    try:
        yield
    except (UserError, WeightsError) as error:
        error.args = (_in_parameters(str(error)),)
        raise


def _in_parameters(message: str) -> str:
    """`data.root=PATH` is data=PATH, `model=NAME` is one of models, and every other key is given by overrides."""
    start = r"(?<![\w./\"-])"  # not within a path, nor what is translated already; a path as a value may have spaces
    for hydra_s, ours in (
        (rf"{start}data=folder data\.root=", "data="),
        (rf"{start}data\.root=", "data="),
        (rf"{start}model=([\w.]+)", r'models=["\1"]'),
        (
            rf"{start}((?:data|transforms|model|trainer|export)\.[\w.]+=(?!/)[^\s,;:(){{}}\[\]\"]*\w)",
            r'overrides=["\1"]',
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
