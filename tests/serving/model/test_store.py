"""A model by its name: what is kept is not fetched again, and a start needs no disk that can be written."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from serving.model.errors import RegistryError, UserError
from serving.model.registry import champion_uri, connect
from serving.model.store import ModelStore
from tests.helpers.state import Trained, state_in

CPU = ("CPUExecutionProvider",)


@pytest.fixture
def tiny_disk(tmp_path: Path, trained: Trained, state_dir: Path) -> Iterator[Path]:
    """A state directory on a file system of its own, which holds the tests' registry."""
    disk = tmp_path / "state"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk])
    if not mounted or mounted.returncode != 0:
        pytest.skip("no small disk: a tmpfs can't be mounted here")
    shutil.copy(state_dir / "mlflow.db", disk / "mlflow.db")
    with state_in(disk):
        yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def make_full(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def load(state: Path) -> str:
    predictor = ModelStore(champion_uri(), state, CPU).load()
    return predictor.version


@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_start_needs_no_writable_disk(tiny_disk: Path, trained: Trained, state: str, kept: bool) -> None:
    if kept:  # by a service that has ended: what holds a file open keeps the disk writable
        copies = tiny_disk / "serving" / champion_uri().removeprefix("models:/")
        copies.mkdir(parents=True)
        shutil.copy(trained.onnx, copies / f"{trained.version}.onnx")
    make_full(tiny_disk) if state == "full" else make_read_only(tiny_disk)
    assert load(tiny_disk) == trained.version


def test_a_damaged_copy_and_one_of_another_registry_are_fetched_again(
    trained: Trained, state_dir: Path, tmp_path: Path
) -> None:
    store = ModelStore(champion_uri(), tmp_path, CPU)
    store.load()
    copy = next(tmp_path.rglob("*.onnx"))
    whole = copy.read_bytes()
    another = onnx.load(copy)
    properties = {each.key: each.value for each in another.metadata_props}
    onnx.helper.set_model_props(another, {**properties, "mlflow_run_id": "of another registry"})
    for content in (b"", whole[:1000], another.SerializeToString()):
        copy.write_bytes(content)
        assert store.load().metadata.mlflow_run_id == trained.run_id
        assert copy.read_bytes() == whole
    copy.write_bytes(b"")
    assert store.load_copy().metadata.mlflow_run_id == trained.run_id


def test_a_version_that_is_kept_is_not_fetched_again(
    trained: Trained, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(champion_uri(), tmp_path, CPU)
    store.load()
    copy = next(tmp_path.rglob("*.onnx"))
    written = copy.stat().st_mtime_ns
    store.load_version(trained.version)
    store.load()
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.onnx")] == [written]


def test_a_registry_that_goes_away_while_it_is_asked_leaves_what_is_kept(
    trained: Trained, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has told the version, and nothing after that."""
    store = ModelStore(champion_uri(), tmp_path, CPU)
    store.load()

    def gone(*_: object) -> str:
        raise RegistryError("the registry does not answer")

    monkeypatch.setattr("serving.model.registry.run_of", gone)
    assert store.load().version == trained.version


@pytest.mark.parametrize("address", ["http://ann:pass/word@host", "postgresql://ann:pass/word@host/mlflow"])
def test_a_password_that_reads_as_a_path_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(UserError, match="/ is written as %2F") as refusal:
        connect(address)
    assert "word@" not in str(refusal.value)
