"""The main job: data -> candidates -> evaluation -> ONNX -> registry -> champion."""

import os
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from pydantic import Field

from flows.arguments import run_command
from flows.failures import RETRIES, TEMPORARY, cancellable, in_words_of_the_flow
from flows.rollback import lock_everywhere
from flows.runners.side_by_side import Runner, side_by_side
from flows.runners.tasks import train_candidate
from serving.model.errors import UserError
from serving.model.registry import registered_name
from training import tracking
from training.config import compose
from training.loop.candidates import none_left, noted, reason, train_each
from training.loop.trainable import check_trainable
from training.release import promotion, registry
from training.release.candidate import export_run, exported
from training.train import read, repeated_run, try_out

EXAMPLE = "python -m flows.retrain models=[resnet18,densenet121] experiment=quick data=PATH"


@task(task_run_name="prepare {data}", **RETRIES)
@in_words_of_the_flow()
def prepare_data(
    overrides: list[str], models: list[str], data: str, name: str, replace_classes: bool
) -> dict[str, str]:
    """Fills the cache, so that every candidate finds its pictures decoded; refuses what can't replace the champion.

    Returns the finished runs of the candidates whose training would only repeat them.
    """
    found = {}
    for model in models:
        settings, pictures = read(compose([*overrides, f"model={model}"]))
        if run_id := repeated_run(settings, pictures):
            found[model] = run_id
    if not replace_classes:
        registry.require_same_classes(name, pictures.classes)
    return found


@task(task_run_name="try {model}", **RETRIES)
@in_words_of_the_flow()
def try_candidate(overrides: list[str], model: str) -> None:
    """Fetches a model's weights and trains it on one batch."""
    try_out(compose([*overrides, f"model={model}"]))


@task(task_run_name="choose the best", **RETRIES)
def rank(runs: dict[str, str]) -> list[str]:
    """The candidates, the best validation accuracy first; the test set has no say in it."""
    accuracies = {model: validation_accuracy(run_id) for model, run_id in runs.items()}
    return sorted(runs, key=lambda model: accuracies[model], reverse=True)


def validation_accuracy(run_id: str) -> float:
    """That of the epoch whose weights the run ended with."""
    return max(tracking.history(run_id, "validation_accuracy").values())


@task(task_run_name="export to ONNX", **RETRIES)
def export(run_id: str) -> str:
    """Exports and checks the model, unless that is done; returns the URI of the logged ONNX model."""
    return exported(run_id) or export_run(run_id)


@task(task_run_name="list the candidates", **RETRIES)
def tabulate(runs: dict[str, str], found: list[str], failures: dict[str, str], best: str | None) -> None:
    """Shows on the flow run's page what became of each candidate, and the way to the best one.

    Args:
        runs: by the candidates that have been trained.
        found: those of them that were finished before.
        failures: why the others, or the export of these, failed.
    """
    rows = []
    for model in dict.fromkeys([*runs, *failures]):
        run = tracking.connect().get_run(runs[model]) if model in runs else None
        found_before = "finished before; force=true trains it again" if model in found else ""
        rows.append(
            {
                "model": model,
                "validation accuracy": run and f"{validation_accuracy(run.info.run_id):.2%}",
                "test accuracy": run and f"{run.data.metrics['test_accuracy']:.2%}",
                "images per second": run and f"{run.data.metrics['images_per_second']:.0f}",
                "MLflow run": run and run.info.run_id,
                "remark": f"failed: {failures[model]}" if model in failures else found_before,
            }
        )
        if run and model == best and (page := tracking.run_page(run)):
            create_link_artifact(page, f"{model} in MLflow", key="mlflow-run", description="The best one")
    create_table_artifact(rows, key="candidates", description="The candidates of this retraining")


@task(task_run_name="register", **RETRIES)
def register(run_id: str, model_uri: str, name: str) -> str:
    """Registers the checked model; returns its version."""
    return registry.register(run_id, model_uri, name, lock_everywhere)


@task(task_run_name="compare with the champion", **RETRIES)
def promote_if_better(version: str, name: str, replace_classes: bool = False) -> bool:
    """Compares the version with the champion, promotes it or not, and says why."""
    decision = promotion.promote_if_better(version, name, replace_classes, lock_everywhere)
    create_markdown_artifact(f"# Version {version} {decision.verdict}\n\n{decision.reason}", key="decision")
    return decision.promote


@flow(name="retrain", log_prints=True)
@in_words_of_the_flow()
@cancellable
def retrain(
    models: Annotated[list[str], Field(min_length=1)] = ["efficientnet_lite0"],  # noqa: B006
    experiment: str = "quick",
    data: str = "cifar10",
    overrides: list[str] = [],  # noqa: B006
    name: str = "",
    replace_classes: bool = False,
    force: bool = False,
    runner: Runner = "in_turn",
    cpus: Annotated[int, Field(ge=0)] = 0,
    gpus: Annotated[int, Field(ge=0)] = 0,
) -> str:
    """Trains candidates, exports and registers the best, and makes it the champion if it is better.

    A candidate that fails is left out, with its reason, and one that is finished already is not trained again.

    Args:
        models: options of `training/conf/model`.
        experiment: an option of `training/conf/experiment`.
        data: `cifar10`, `digits`, or the path of pictures: a folder or an archive of classes, a CSV or Parquet file.
        overrides: further Hydra overrides, such as `trainer.epochs=2`; in a shell overrides='["trainer.epochs=2"]'.
        name: the registered model; empty: MODEL_NAME, or image-classifier.
        replace_classes: whether a champion that knows other classes may be replaced.
        force: trains also what the same commit, without changes, has trained on the same data and settings.
        runner: trains candidates `in_turn`, side by side in `processes`, or on the nodes of a Ray cluster: `ray`.
        cpus: that each takes; 0: all in turn, an equal share in processes, those of the smallest node on Ray.
        gpus: that each takes in processes and on Ray; 0: one, where there are any.

    Returns:
        The registered version.
    """
    name = registered_name(name)
    common = [*data_overrides(data), f"experiment={experiment}", *overrides]
    for model in models:
        check_trainable(compose([*common, f"model={model}"]))  # a mistake is refused before any work is done
    with side_by_side(runner, len(models), cpus, gpus) as work:
        finished = prepare_data(common, models, data, name, replace_classes)
        found = {} if force else finished
        runs, failures = train_each(
            [model for model in models if model not in found],
            lambda model: try_candidate(common, model),
            lambda model: work.begin(train_candidate, overrides=common, model=model).result,
        )
    runs |= found
    best = None
    for model in rank(runs):
        with noted(failures, model, but=TEMPORARY):  # which would fail the next one's export as well
            model_uri = export(runs[model])
            best = model
            break
    tabulate(runs, [*found], {model: reason(error) for model, error in failures.items()}, best)
    if best is None:
        raise none_left(failures)
    version = register(runs[best], model_uri, name)
    promote_if_better(version, name, replace_classes)
    get_run_logger().info("%s version %s is registered", name, version)
    return version


def data_overrides(data: str) -> list[str]:
    """The Hydra overrides for a data set by its name or path."""
    if data in ("cifar10", "digits"):
        return [f"data={data}"]
    path = Path(os.path.expanduser(data)).resolve()
    if not data or not path.exists():
        raise UserError(f"data={data}: no such path; give a folder or an archive of pictures, cifar10 or digits")
    return ["data=folder", f"data.root={path}", f"data.name={path.stem}"]


if __name__ == "__main__":
    run_command(retrain, EXAMPLE)
