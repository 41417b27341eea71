"""The best of many settings, by validation accuracy alone: python -m flows.search experiment=quick trials=20"""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from pydantic import Field

from flows.arguments import print_table, run_command
from flows.failures import RETRIES, TEMPORARY, cancellable, in_words_of_the_flow
from flows.retrain import data_overrides
from flows.runners.side_by_side import Runner, first_ended, side_by_side
from flows.runners.tasks import try_settings
from serving.model.errors import UserError
from training import tracking
from training.config import compose
from training.loop.candidates import noted, reason
from training.search import outcome, record
from training.search.space import Space, check_space, check_trial, own_values, read_space, try_space, words
from training.search.study import Study, mend, require_optuna
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
    runner: Runner = "in_turn",
    cpus: Annotated[int, Field(ge=0)] = 0,
    gpus: Annotated[int, Field(ge=0)] = 0,
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
        runner: tries settings `in_turn`, side by side in `processes`, or on the nodes of a Ray cluster: `ray`.
        cpus: that each trial takes, as a candidate of `flows.retrain`.
        gpus: likewise.

    Returns:
        The trials: a row each.
    """
    require_optuna()
    common = [*data_overrides(data), f"experiment={experiment}", f"model={model}", *overrides]
    if removed := next((word for word in overrides if word.startswith("~")), ""):
        raise UserError(f"{removed}: an experiment can't take out what another has; give a value instead, such as p=0")
    settings, parameters = compose(common), read_space(space)
    check_trial(settings)
    check_space(space, parameters, common)
    with side_by_side(runner, trials, cpus, gpus, shared=record.journal(settings, "").parent) as work:
        name, first = prepare(common, experiment, space, parameters)
        journal = record.journal(settings, name).absolute()
        with exclusive_run(settings, name):
            mend(journal)
            study = Study(journal)
            study.begin(first, parameters)

            with record.search_run(settings, name, study) as run_id:

                def begin(number: int) -> Future[None]:
                    given = [*common, *words(study.params(number))]
                    return work.begin(try_settings, overrides=given, journal=journal, number=number, parent=run_id)

                try_each(study, lambda: study.ask(parameters, trials, settings.seed), begin, work.at_once)
                return conclude(run_id, name, experiment, [f"model={model}", *overrides], parameters, journal)


def try_each(study: Study, ask: Callable[[], int | None], begin: Callable[[int], Future[None]], at_once: int) -> None:
    """Has so many trials at work at a time, until there is none to ask for; of one that fails it notes the reason."""
    at_work, failures = dict[Future[None], int](), dict[str, Exception]()
    while True:
        while len(at_work) < at_once and (number := ask()) is not None:
            at_work[begin(number)] = number
        if not at_work:
            return
        number = at_work.pop(ended := first_ended(at_work))
        with noted(failures, trial := f"trial {number}", but=TEMPORARY):
            ended.result()
        if trial in failures:
            study.fail(number, reason(failures[trial]))


if __name__ == "__main__":
    print_table(run_command(search, EXAMPLE))
