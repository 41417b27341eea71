"""What nobody needs any more of the registry, of MLflow's runs and of the state directory: which it is, and its end."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from filelock import Timeout
from mlflow.entities import LifecycleStage, LoggedModel, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError

from serving.model.errors import RegistryError, UserError, first_line
from serving.model.registry import NOT_THERE, named_error
from training import tracking
from training.loop.checkpoint import ASIDE, Checkpoints, address, checkpoints_dir, run_lock
from training.release import registry

DATABASE = "MLFLOW_BACKEND_STORE_URI"  # MLflow's own name for the address of its server's database
OURS = "tags.data_fingerprint LIKE '%'"  # which all runs of ours have, and no others of a server that is shared
ENDED = ("FINISHED", "FAILED", "KILLED")
IDS = re.compile(r"m-[0-9a-f]{32}|[0-9a-f]{32}")  # of logged models and of runs


class Freed(NamedTuple):
    """Something that is freed, or would be: its name, and how many bytes it takes."""

    name: str
    bytes: int


def free_versions(
    name: str, keep_champions: int, keep_versions: int, dry_run: bool, lock: registry.Lock = registry.state_lock
) -> list[str]:
    """Deletes the versions of `name` that are not kept from the registry; returns them, the oldest first."""
    client = tracking.connect()
    try:
        with lock(name):
            if not (there := registry.versions(name)):
                return []
            named = {int(version) for version in client.get_registered_model(name).aliases.values()}
            champions = [int(version) for version in registry.champions(name)]
            free = unneeded_versions(there, named, champions, keep_champions, keep_versions)
            for version in [] if dry_run else free:
                client.delete_model_version(name, version)
            return free
    except MlflowException as error:
        raise named_error(error, f"the registered model {name}") from error


def unneeded_versions(
    there: Collection[int], named: Collection[int], champions: Sequence[int], keep_champions: int, keep_versions: int
) -> list[str]:
    """The versions that no alias names, that no rollback is to go back to, and that are not of the newest.

    Args:
        there: all versions.
        named: those that an alias names.
        champions: those that were the champion, in their order; the last is the present one.
        keep_champions: how many before the present one are kept.
        keep_versions: how many of the newest are kept.
    """
    kept = {*named, *champions[-1 - keep_champions :], *sorted(there, reverse=True)[:keep_versions]}
    return [str(version) for version in sorted(there) if version not in kept]


def free_runs(
    name: str, without: Collection[str], keep_runs: int, before: datetime, in_use: Collection[str], dry_run: bool
) -> tuple[list[Freed], bool]:
    """Frees the runs of ours that nobody needs, with their models and files, and those that were deleted before.

    An MLflow server does not free what is deleted: that needs its database, whose address DATABASE gives.

    Args:
        name: the registered model whose versions `without` are not counted: they are freed as well.
        keep_runs: how many of the newest are kept.
        before: when those ended, or were started, that may be freed.
        in_use: runs that are kept.

    Returns:
        The runs; whether they are freed, or would be: else they are marked as deleted alone.
    """
    client, database = tracking.connect(), database_address()
    try:
        experiments = [experiment.experiment_id for experiment in _all(client.search_experiments)]
        runs = list(_all(client.search_runs, experiments, OURS, ViewType.ALL))
        models = list(_all(client.search_logged_models, experiments))
        versions = [
            version
            for version in _all(client.search_model_versions)
            if version.name != name or str(version.version) not in without
        ]
        free = unneeded_runs(runs, needed_runs(runs, models, versions) | {*in_use}, keep_runs, before)
        sizes = {run.info.run_id: artifact_bytes(run.info.artifact_uri) for run in free}
        for model in models:
            if model.source_run_id in sizes:
                sizes[model.source_run_id] += artifact_bytes(model.artifact_location)
        for run in [] if dry_run else free:
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                client.delete_run(run.info.run_id)
        if not dry_run:  # while the sizes were asked for, which takes a while, one may have become a version
            for run_id in needed_runs(runs, models, _all(client.search_model_versions)) & sizes.keys():
                client.restore_run(run_id)
                del sizes[run_id]
        for model in models if database and not dry_run else []:
            if model.source_run_id in sizes:
                client.delete_logged_model(model.model_id)
    except Exception as error:
        reason = first_line(error)
        raise RegistryError(f"MLflow's runs can't be cleaned up now ({reason})") from error
    if sizes and database and not dry_run:
        collect(sizes, database)
    return [Freed(run_id, size) for run_id, size in sizes.items()], database is not None


def needed_runs(runs: Iterable[Run], models: Iterable[LoggedModel], versions: Iterable[ModelVersion]) -> set[str]:
    """The runs that a version refers to, in whichever way, and the parents of these."""
    known = {found for version in versions for found in IDS.findall(f"{version.run_id} {version.source}")}
    needed = known | {str(model.source_run_id) for model in models if model.model_id in known}
    parents: Mapping[str, str | None] = {run.info.run_id: run.data.tags.get(MLFLOW_PARENT_RUN_ID) for run in runs}
    while more := {parent for run_id in needed if (parent := parents.get(run_id))} - needed:
        needed |= more
    return needed


def unneeded_runs(runs: Sequence[Run], needed: Collection[str], keep_runs: int, before: datetime) -> list[Run]:
    """The runs that ended before a time, or were deleted, are not needed, and not of the newest that are there."""

    def time(run: Run) -> int:  # in milliseconds
        return int(run.info.end_time or run.info.start_time)

    there = [run for run in runs if run.info.lifecycle_stage == LifecycleStage.ACTIVE and run.info.status in ENDED]
    newest = {run.info.run_id for run in sorted(there, key=time, reverse=True)[:keep_runs]}
    return [
        run
        for run in runs
        if (run in there or run.info.lifecycle_stage == LifecycleStage.DELETED)
        and run.info.run_id not in {*needed, *newest}
        and time(run) < before.timestamp() * 1000
    ]


def database_address() -> str | None:
    """That of the database behind MLflow: a server has one of its own, which DATABASE names."""
    uri = str(mlflow.get_tracking_uri())
    return (os.environ.get(DATABASE) or None) if uri.startswith("http") else uri


def collect(run_ids: Collection[str], database: str) -> None:
    """Does what `mlflow gc` does, to deleted runs and their deleted models alone.

    The command itself takes with it every experiment and every model that anybody has deleted, which no version is
    looked at for. UserError where the database is another one, RegistryError where it does not answer.
    """
    from mlflow.cli import _gc_tracking_resources  # which loads all of MLflow's commands

    try:
        create_engine(database).connect().close()  # where it is away, MLflow would try for an hour
        store = SqlAlchemyStore(database, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        deleted = [store.get_logged_model(model, allow_deleted=True) for model in store._get_deleted_logged_models()]
        models = [model.model_id for model in deleted if model.source_run_id in run_ids]
        # The models first, which nobody would find again without their run.
        for runs_now, models_now in (([], models), ([*run_ids], [])):
            with contextlib.redirect_stdout(io.StringIO()):  # a line for each of them
                _gc_tracking_resources(
                    backend_store=store,
                    run_ids=runs_now,
                    experiment_ids=None,
                    logged_model_ids=models_now,
                    older_than=None,
                    time_delta=0,
                    skip_experiments=True,
                    skip_logged_models=False,
                )
    except ArgumentError as error:
        raise UserError(
            f"{DATABASE} is no address of a database ({error}); give postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    except Exception as error:
        reason = first_line(error)
        if getattr(error, "error_code", None) in NOT_THERE:
            message = f"{DATABASE} is not the database of the MLflow server at {mlflow.get_tracking_uri()} ({reason})"
            raise UserError(
                f"{message}\nThe runs are marked as deleted; with the right address they are freed."
            ) from error
        message = (
            f"runs are marked as deleted and not freed: MLflow's database or its storage does not answer ({reason})"
        )
        raise RegistryError(message) from error


def artifact_bytes(uri: str) -> int:
    """How much lies at the address of a run's or a model's artifacts."""
    store = get_artifact_repository(uri)

    def size(path: str | None) -> int:
        return sum(size(file.path) if file.is_dir else file.file_size or 0 for file in store.list_artifacts(path))

    return size(None)


def _all(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """What a search of MLflow's finds, on all of its pages."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        if not (token := page.token):
            return


def free_checkpoints(before: datetime, dry_run: bool) -> tuple[list[Freed], set[str]]:
    """Removes the checkpoints of runs that were interrupted before a time, and that no run is at work on.

    Returns them, and the MLflow runs of those that stay.
    """
    freed, kept = [], set()
    for folder in _folders(checkpoints_dir(tracking.state_dir())):
        checkpoints = Checkpoints(folder)
        if not (checkpoints.are_ours or folder.name.startswith(ASIDE)):
            continue
        run_id = checkpoints.run_id
        if _is_older(folder, before):
            with contextlib.suppress(Timeout), run_lock(tracking.state_dir(), folder.name):
                freed.append(_removed(folder, dry_run))
                if run_id and not dry_run and not address():  # from where another machine may have gone on
                    _end(run_id)
                continue
        if run_id:
            kept.add(run_id)
    return freed, kept


def _end(run_id: str) -> None:
    """Lets MLflow have as killed what it has as RUNNING, though nobody was there any more to say so."""
    client = tracking.connect()
    with contextlib.suppress(MlflowException):  # the run is gone as well
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


def free_caches(before: datetime, dry_run: bool) -> list[Freed]:
    """Removes decoded pictures that were not used since a time, and what is left of a decoding that was cut off."""
    return [
        _removed(folder, dry_run) for folder in _folders(tracking.state_dir() / "cache") if _is_older(folder, before)
    ]


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir())


def _is_older(folder: Path, before: datetime) -> bool:
    return folder.stat().st_mtime < before.timestamp()


def _removed(folder: Path, dry_run: bool) -> Freed:
    size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    if not dry_run:
        aside = folder.with_name(ASIDE + folder.name)  # nobody shall find the half of it
        folder.rename(aside)
        shutil.rmtree(aside)
    return Freed(folder.name, size)
