"""One trial of a search: a training that stops where others were better, and never sees the test set."""

import logging
from pathlib import Path

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from training import tracking
from training.search.space import words
from training.search.study import Study
from training.settings import TrainSettings
from training.train import remove_checkpoints, set_up, tracked

log = logging.getLogger(__name__)


def train_trial(settings: TrainSettings, journal: Path, number: int, parent: str, patience: float = 0) -> None:
    """Trains a trial that has been asked for, from its checkpoint where it was cut off, and tells the journal.

    Args:
        settings: the experiment's with the trial's values.
        parent: the search's run in MLflow, in which the trial's is nested.
        patience: as that of `train`.
    """
    study = Study(journal)
    if study.is_finished(number):  # it was cut off after it had told the journal
        return
    log.info("trial %d: %s", number, ", ".join(words(study.params(number))))
    run = set_up(settings, f"{journal.stem}-{number}-")
    pruned = False
    with tracked(run, patience) as (_, epochs):
        mlflow.set_tags({MLFLOW_PARENT_RUN_ID: parent, MLFLOW_RUN_NAME: f"trial {number}", "search": journal.stem})
        for epoch in epochs:
            accuracy = epoch.metrics["validation_accuracy"]
            last = run.trainer.epochs
            if study.is_hopeless(number, epoch.number, accuracy) and epoch.number < last:
                reason = f"Pruned after epoch {epoch.number} of {last}: half of the trials were better by then."
                log.info("trial %d: %s", number, reason)
                mlflow.set_tags({"pruned": "true", tracking.DESCRIPTION: reason})
                mlflow.end_run("KILLED")
                pruned = True
                break
    if pruned:
        study.prune(number)
    else:
        study.complete(number, run.trainer.best_accuracy)
    remove_checkpoints(run)
