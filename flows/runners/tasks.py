"""The tasks that may be done elsewhere: another process knows them by this module, however the flow was loaded."""

from pathlib import Path

from prefect import task

from flows.failures import RETRIES, in_words_of_the_flow
from flows.runners.side_by_side import own
from training.config import compose
from training.search.trial import train_trial
from training.train import train

PATIENCE = 45  # seconds in which the processes of one that was killed beside others end


# A retry resumes from the last checkpoint.
@task(task_run_name="train {model}", **RETRIES)
@in_words_of_the_flow()
def train_candidate(overrides: list[str], model: str, cpus: int = 0, gpus: str | None = None) -> str:
    """Trains and evaluates one model, on so many CPUs and these GPUs where it has its own; returns its MLflow run."""
    with own(cpus, gpus):
        return train(compose([*overrides, f"model={model}"]), PATIENCE if cpus else 0)


# A retry, and another search for the same, resume from the last checkpoint.
@task(task_run_name="trial {number}", **RETRIES)
@in_words_of_the_flow(model="model={}")
def try_settings(
    overrides: list[str], journal: Path, number: int, parent: str, cpus: int = 0, gpus: str | None = None
) -> None:
    """Trains a trial, unless it is pruned, and tells the journal what it came to."""
    with own(cpus, gpus):
        train_trial(compose(overrides), journal, number, parent, PATIENCE if cpus else 0)
