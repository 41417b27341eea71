"""What is kept of a search: its name, its run in MLflow, the picture of its trials, the experiment of the best one."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from serving.model.errors import UserError
from training import tracking
from training.loop.candidates import none_left
from training.pages.page import write_whole
from training.pages.plots import svg
from training.search.outcome import best, ended, experiment_yaml, figure
from training.search.space import Space, as_json
from training.search.study import REASON, Study
from training.settings import TrainSettings
from training.train import read, run_key

EXPERIMENT_FILE = "experiment.yaml"
TRIALS_FILE = "trials.svg"


def named(experiment: str, space_name: str, space: Space, settings: TrainSettings) -> str:
    """A search's name, from all that its accuracies depend on: who asks for the same goes on with it."""
    suiting, data = read(settings)
    depends = f"{run_key(suiting, data)} {json.dumps(as_json(space))}"
    key = hashlib.sha256(depends.encode()).hexdigest()[:8]
    return re.sub(r"\W", "_", f"{experiment}_{Path(space_name).stem}_{key}")  # an option of Hydra's


def journal(settings: TrainSettings, name: str) -> Path:
    return settings.state_dir / "searches" / f"{name}.journal"


@contextmanager
def search_run(settings: TrainSettings, name: str, study: Study) -> Iterator[str]:
    """Opens the search's run in MLflow, the one that it began with where that is there; its trials are nested in it."""
    experiment = tracking.experiment_id(settings.mlflow_experiment)
    run_id = study.run_id
    if run_id and not MlflowClient().search_runs([experiment], f"attributes.run_id = '{run_id}'"):
        run_id = None
    with (
        mlflow.start_run(run_id, experiment, name) as run,
        tracking.when_told_to_stop(lambda: mlflow.end_run("KILLED")),
    ):
        study.run_id = run.info.run_id
        tracking.tell_page(run)
        _, data = read(settings)
        mlflow.set_tags({"search": name, "model": settings.model.name, "data": data.name})
        mlflow.set_tags({"data_fingerprint": data.fingerprint, **tracking.git_state()})
        mlflow.log_text(tracking.as_yaml(settings), tracking.CONFIG_FILE)
        yield run.info.run_id


def keep(run_id: str, name: str, experiment: str, overrides: Sequence[str], space: Space, study: Study) -> str:
    """Keeps the picture of the trials, and the best one's settings as an experiment of the search's name.

    Args:
        overrides: Hydra's, with which the search was asked for.

    Returns:
        A sentence on it; UserError where no trial was trained to its end.
    """
    trials = study.trials
    tracking.log_file(run_id, TRIALS_FILE, svg(figure(trials, space)).encode())
    if not (chosen := best(trials)):
        reasons = {f"trial {trial.number}": UserError(trial.user_attrs[REASON]) for trial in ended(trials, "FAIL")}
        raise none_left(reasons)
    says = f"Trial {chosen.number} is the best of {len(trials)}: validation accuracy {chosen.value:.2%}"
    if study.begins_with_the_experiment and trials[0].value is not None:
        says += f", where the experiment itself has {trials[0].value:.2%}"
    for state, what in (("PRUNED", "pruned"), ("FAIL", "failed")):
        if count := len(ended(trials, state)):
            says += f"; {count} {what}"
    text = experiment_yaml(experiment, overrides, chosen.params, f"{says}. MLflow run {run_id}").encode()
    write_whole(tracking.state_dir() / "experiment" / f"{name}.yaml", text)
    tracking.log_file(run_id, EXPERIMENT_FILE, text)
    mlflow.log_metric("validation_accuracy", chosen.value or 0)
    mlflow.set_tag(tracking.DESCRIPTION, f"{says}. `experiment={name}` trains with its settings.")
    return says
