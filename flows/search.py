"""The best of many settings, by validation accuracy alone: python -m flows.search experiment=quick trials=20"""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from pydantic import Field

from flows.arguments import print_table, run_command
from flows.failures import RETRIES, TEMPORARY, cancellable, in_words_of_the_flow
from flows.retrain import data_overrides
from serving.model.errors import UserError
from training import tracking
from training.config import compose
from training.loop.candidates import noted, reason
from training.loop.trainable import check_trainable
from training.search import outcome, record
from training.search.space import Space, check_space, own_values, read_space, try_space, words
from training.search.study import Study, mend, require_optuna
from training.search.trial import train_trial
from training.train import exclusive_run, read, try_out

EXAMPLE = "python -m flows.search experiment=quick trials=20 space=default data=PATH"


@task(task_run_name="prepare {experiment}", **RETRIES)
@in_words_of_the_flow(model="model={}")
def prepare(overrides: list[str], experiment: str, space_name: str, space: Space) -> tuple[str, dict[str, Any]]:
    """Fills the cache, fetches the weights and trains on one batch; returns the search's name and where it begins."""
    settings = compose(overrides)
    suiting, data = read(settings)
    try_space(space_name, space, overrides, len(data.train))
    try_out(settings)
    return record.named(experiment, space_name, space, settings), own_values(space, suiting)


# A retry, and another search for the same, resume from the last checkpoint.
@task(task_run_name="trial {number}", **RETRIES)
@in_words_of_the_flow(model="model={}")
def try_settings(overrides: list[str], journal: Path, number: int, parent: str) -> None:
    """Trains a trial, unless it is pruned, and tells the journal what it came to."""
    train_trial(compose(overrides), journal, number, parent)


@task(task_run_name="list the trials", **RETRIES)
def conclude(
    run_id: str, name: str, experiment: str, overrides: list[str], space: Space, journal: Path
) -> list[dict[str, Any]]:
    """Shows the trials on the flow run's page, writes the best one's experiment; returns a row a trial."""
    study = Study(journal)
    rows = outcome.table(study.trials)
    create_table_artifact(rows, key="trials", description="The trials of this search")
    says = record.keep(run_id, name, experiment, overrides, space, study)
    create_markdown_artifact(f"# experiment={name}\n\n{says}.", key="experiment")
    if page := tracking.run_page(tracking.connect().get_run(run_id)):
        create_link_artifact(page, f"{name} in MLflow", key="mlflow-search", description="With a picture of the trials")
    get_run_logger().info("%s\npython -m training.train experiment=%s", says, name)
    return rows


@flow(name="search", log_prints=True)
@in_words_of_the_flow(model="model={}")
@cancellable
def search(
    experiment: str = "quick",
    trials: Annotated[int, Field(gt=0)] = 20,
    space: str = "default",
    model: str = "efficientnet_lite0",
    data: str = "cifar10",
    overrides: list[str] = [],  # noqa: B006
) -> list[dict[str, Any]]:
    """Tries settings around an experiment's, and writes the best one's as an experiment of the state directory.

    The first trial is the experiment itself. The same command goes on where it was cut off, and adds
    trials where it asks for more.

    Args:
        experiment: an option of `training/conf/experiment`.
        trials: how many in all, with those that are pruned or fail.
        space: an option of `training/conf/search`, or a YAML file of that form.
        model: an option of `training/conf/model`.
        data: `cifar10`, `digits`, or the path of pictures: a folder or an archive of classes, a CSV or Parquet file.
        overrides: further Hydra overrides of all trials; in a shell overrides='["trainer.epochs=2"]'.

    Returns:
        The trials: a row each.
    """
    require_optuna()
    common = [*data_overrides(data), f"experiment={experiment}", f"model={model}", *overrides]
    if removed := next((word for word in overrides if word.startswith("~")), ""):
        raise UserError(f"{removed}: an experiment can't take out what another has; give a value instead, such as p=0")
    settings, parameters = compose(common), read_space(space)
    check_trainable(settings)
    if settings.trainer.processes != 1:
        raise UserError(
            f"trainer.processes={settings.trainer.processes}: a trial is trained in one process; leave it out"
        )
    check_space(space, parameters, common)
    name, first = prepare(common, experiment, space, parameters)
    journal, failures = record.journal(settings, name), dict[str, Exception]()
    with exclusive_run(settings, name):
        mend(journal)
        study = Study(journal)
        study.begin(first, parameters)
        with record.search_run(settings, name, study) as run_id:
            while (number := study.ask(parameters, trials, settings.seed)) is not None:
                with noted(failures, trial := f"trial {number}", but=TEMPORARY):
                    try_settings([*common, *words(study.params(number))], journal, number, run_id)
                if trial in failures:
                    study.fail(number, reason(failures[trial]))
            return conclude(run_id, name, experiment, [f"model={model}", *overrides], parameters, journal)


if __name__ == "__main__":
    print_table(run_command(search, EXAMPLE))
