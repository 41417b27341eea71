"""What a clean-up keeps and what it frees: on a real registry, with versions that answer, and in a state directory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import onnx
import pytest
import torch
from mlflow.exceptions import MlflowException

from serving.model.errors import RegistryError, UserError
from serving.model.registry import CHALLENGER, CHAMPION, DEFAULT_NAME
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import CONTRACT_0, ROOT, TINY, state_in
from training import tracking
from training.config import compose
from training.data.split import load_data
from training.loop.checkpoint import Checkpoints
from training.release import registry, retention
from training.release.retention import (
    collect,
    free_caches,
    free_checkpoints,
    free_runs,
    free_versions,
    unneeded_versions,
)
from training.train import exclusive_run

MONTH_AGO = datetime.now(UTC) - timedelta(days=30)
LONG_AGO = MONTH_AGO - timedelta(days=1)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    with state_in(tmp_path):
        yield tmp_path


def run(status: str = "FINISHED", ended: datetime = LONG_AGO, **tags: str) -> str:
    """A run of ours, with a file."""
    client, at = tracking.connect(), int(ended.timestamp() * 1000)
    run_id = client.create_run(tracking.experiment_id("cifar10"), at, {"data_fingerprint": "0", **tags}).info.run_id
    client.log_text(run_id, "0" * 1000, "losses.txt")
    if status != "RUNNING":
        client.set_terminated(run_id, status, at)
    return str(run_id)


def version() -> tuple[str, str]:
    """A version that answers, and its run."""
    run_id, model = run(), onnx.load(CONTRACT_0)
    with mlflow.start_run(run_id):
        logged = mlflow.onnx.log_model(model, name="onnx", pip_requirements=[], save_as_external_data=False)
    tracking.connect().set_terminated(run_id, end_time=int(LONG_AGO.timestamp() * 1000))
    return str(mlflow.register_model(logged.model_uri, DEFAULT_NAME).version), run_id


def is_there(run_id: str) -> bool:
    try:
        return bool(tracking.connect().get_run(run_id))
    except MlflowException:
        return False


@pytest.mark.parametrize(
    ("keep_champions", "keep_versions", "free"),
    [(5, 10, []), (1, 0, ["1", "3", "5", "6"]), (0, 0, ["1", "3", "4", "5", "6"]), (1, 3, ["1", "3"])],
)
def test_which_versions_are_not_needed(keep_champions: int, keep_versions: int, free: list[str]) -> None:
    there, named, champions = range(1, 8), [2], [1, 3, 4, 7]
    assert unneeded_versions(there, named, champions, keep_champions, keep_versions) == free


@pytest.mark.slow
def test_the_champions_that_are_kept_can_be_rolled_back_to_after_a_clean_up(state: Path) -> None:
    client = tracking.connect()
    (ann_s, ann_s_run), (second, shared), (third, third_run), *later = (version() for _ in range(6))
    (fourth, fourth_run), (fifth, _), (newest, _) = later
    third_model = client.get_model_version(DEFAULT_NAME, third).source.removeprefix("models:/")
    for champion in (second, third, fourth, fifth):
        registry.crown(DEFAULT_NAME, [*registry.history(DEFAULT_NAME), champion])
    client.set_registered_model_alias(DEFAULT_NAME, "of-ann", ann_s)
    # Another registered model refers to the run of a version that is freed.
    mlflow.register_model(client.get_model_version(DEFAULT_NAME, second).source, "another")
    parent = run()
    client.set_tag(fourth_run, "mlflow.parentRunId", parent)
    at_work, killed, deleted, to_resume, young = (
        run("RUNNING"),
        run("KILLED"),
        run(),
        run(),
        run(ended=datetime.now(UTC)),
    )
    client.delete_run(deleted)
    somebody_s = client.create_run("0").info.run_id
    client.delete_run(somebody_s)
    client.delete_experiment(somebody_s_experiment := client.create_experiment("somebody's"))

    def files() -> set[str]:
        """The folders of runs and models that hold files."""
        parts = (path.parts for path in (state / "mlartifacts").rglob("*") if path.is_file())
        return {each[each.index("artifacts", len(state.parts)) - 1] for each in parts}

    before = files()

    def clean_up(dry_run: bool) -> None:
        versions = free_versions(DEFAULT_NAME, 1, 1, dry_run)
        assert versions == [second, third]
        runs, freed = free_runs(DEFAULT_NAME, versions, 0, MONTH_AGO, [to_resume], dry_run)
        assert {each.name for each in runs} == {third_run, killed, deleted}
        assert freed
        sizes = {each.name: each.bytes for each in runs}
        assert sizes[killed] == 1000
        assert sizes[third_run] > CONTRACT_0.stat().st_size

    clean_up(dry_run=True)
    assert registry.champions(DEFAULT_NAME) == [second, third, fourth, fifth]
    assert all(map(is_there, (third_run, killed, deleted)))
    assert client.get_run(killed).info.lifecycle_stage == "active"

    clean_up(dry_run=False)
    assert not any(map(is_there, (third_run, killed, deleted)))
    assert all(map(is_there, (ann_s_run, shared, fourth_run, parent, at_work, to_resume, young, somebody_s)))
    assert client.get_experiment(somebody_s_experiment).lifecycle_stage == "deleted", "and can be restored"
    assert before - files() == {third_run, killed, deleted, third_model}
    aliases = {alias: str(named) for alias, named in client.get_registered_model(DEFAULT_NAME).aliases.items()}
    assert aliases == {CHAMPION: fifth, CHALLENGER: newest, "of-ann": ann_s}

    assert registry.rollback(DEFAULT_NAME) == fourth
    answer = registry.champion_model(DEFAULT_NAME)
    assert answer is not None
    assert answer.version == fourth
    assert_raises_in_words(
        UserError,
        lambda: registry.rollback(DEFAULT_NAME),
        f"version {fourth}, is the oldest that is kept",
        f"before it is deleted ({second}, {third})",
        "keep_champions",
    )


def test_a_run_that_becomes_a_version_meanwhile_is_not_freed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, run_id = version()
    client = tracking.connect()
    source = client.get_model_version(DEFAULT_NAME, number).source
    client.delete_model_version(DEFAULT_NAME, number)
    size_of = retention.artifact_bytes

    def while_it_is_asked_for(uri: str) -> int:
        if not client.search_model_versions():
            mlflow.register_model(source, DEFAULT_NAME)
        return size_of(uri)

    monkeypatch.setattr(retention, "artifact_bytes", while_it_is_asked_for)
    assert free_runs(DEFAULT_NAME, [], 0, MONTH_AGO, [], dry_run=False) == ([], True)
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    (registered,) = client.search_model_versions()
    assert registry.model(registered)


def test_a_run_whose_checkpoint_nobody_went_on_from_was_killed(state: Path) -> None:
    run_id = run("RUNNING")
    checkpoints = Checkpoints(state / "runs" / "interrupted")
    checkpoints.save(1, 1, {"model": {"weights": torch.zeros(10)}}, {})
    checkpoints.run_id = run_id
    os.utime(checkpoints.directory, (LONG_AGO.timestamp(),) * 2)
    for dry_run, status in ((True, "RUNNING"), (False, "KILLED")):
        free_checkpoints(MONTH_AGO, dry_run)
        assert tracking.connect().get_run(run_id).info.status == status


def test_of_a_database_that_is_away_the_password_is_not_told(state: Path) -> None:
    tracking.connect()
    for address, error, words in (
        ("postgresql://ann:s3cret@127.0.0.1:1/mlflow", RegistryError, "marked as deleted and not freed"),
        ("postgresl://ann:s3cret@127.0.0.1:1/mlflow", UserError, "MLFLOW_BACKEND_STORE_URI is no address"),
        ("ann:s3cret@127.0.0.1", UserError, "MLFLOW_BACKEND_STORE_URI is no address"),
        (f"sqlite:///{state}/mlflow.db", UserError, "MLFLOW_BACKEND_STORE_URI is not the database"),
    ):
        with pytest.raises(error) as failure:
            collect(["0" * 32], address)
        assert words in str(failure.value)
        assert "s3cret" not in str(failure.value)


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_at_work_keeps_its_checkpoint_and_others_keep_what_is_theirs(
    state: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Also where another machine, with a state directory of its own, is at work."""
    runs = state / "runs"
    if shared:
        runs = tmp_path_factory.mktemp("shared")
        monkeypatch.setenv("CHECKPOINTS", str(runs))
    theirs = {"photos/cat.png", "mixed/mlflow_run_id", "mixed/thesis.txt", "epochs/epoch-0001/weights"}
    for name in theirs:
        (runs / name).parent.mkdir(parents=True, exist_ok=True)
        (runs / name).touch()
        os.utime((runs / name).parent, (LONG_AGO.timestamp(),) * 2)
    for key in ("at-work", "interrupted", "young"):
        checkpoints = Checkpoints(runs / key)
        checkpoints.save(1, 1, {"model": {"weights": torch.zeros(1000)}}, {})
        checkpoints.run_id = f"run-{key}"
        if key != "young":
            os.utime(checkpoints.directory, (LONG_AGO.timestamp(),) * 2)
    elsewhere = [f"state_dir={tmp_path_factory.mktemp('elsewhere')}"] if shared else []
    with exclusive_run(compose([*TINY, *elsewhere]), "at-work"):
        for dry_run in (True, False):
            (freed,), kept = free_checkpoints(MONTH_AGO, dry_run)
            assert freed.name == "interrupted"
            assert freed.bytes > 4000
            assert kept == {"run-at-work", "run-young"}
            there = {path.name for path in runs.iterdir()} - {"photos", "mixed", "epochs", "locks"}
            assert there == {"at-work", "young", *(["interrupted"] if dry_run else [])}
    (freed,), _ = free_checkpoints(MONTH_AGO, dry_run=False)
    assert freed.name == "at-work"
    assert all((runs / name).exists() for name in theirs)


DIES_WHILE_FETCHING = """
import os, signal, sys
from pathlib import Path
from training.loop import checkpoint

class Storage:
    def download_artifacts(self, _, directory):
        Path(directory, "mlflow_run_id").touch()
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.get_artifact_repository = lambda address: Storage()
checkpoint.Checkpoints(Path(sys.argv[1]), "s3://bucket").fetch()
"""


def test_what_a_killed_run_was_fetching_is_freed(state: Path) -> None:
    program = [sys.executable, "-c", DIES_WHILE_FETCHING, str(state / "runs" / "key")]
    assert subprocess.run(program, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    (left,) = (state / "runs").iterdir()
    assert free_checkpoints(MONTH_AGO, dry_run=False) == ([], set())
    os.utime(left, (LONG_AGO.timestamp(),) * 2)
    (freed,), _ = free_checkpoints(MONTH_AGO, dry_run=False)
    assert freed.name == left.name
    assert not left.exists()


def test_pictures_that_are_used_stay_in_the_cache(state: Path) -> None:
    settings = compose(TINY)

    def load() -> None:
        load_data(settings.data, settings.seed, settings.model.decoding)

    load()
    (entry,) = (state / "cache").iterdir()
    os.utime(entry, (LONG_AGO.timestamp(),) * 2)
    (freed,) = free_caches(MONTH_AGO, dry_run=True)
    assert freed.bytes > 10_000
    load()
    assert time.time() - entry.stat().st_mtime < 60
    assert free_caches(MONTH_AGO, dry_run=False) == []
    os.utime(entry, (LONG_AGO.timestamp(),) * 2)
    assert free_caches(MONTH_AGO, dry_run=False) == [freed]
    assert list((state / "cache").iterdir()) == []
