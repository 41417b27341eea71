"""Checkpoints that trainer.py resumes from: safetensors, and a JSON of the rest. Each appears whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from serving.model.errors import RegistryError, UserError, first_line
from serving.model.registry import file_lock

Tensors = dict[str, dict[str, Tensor]]  # by file, then by name
State = dict[str, Any]  # what JSON can hold

RUN_ID, STATE = "mlflow_run_id", "state.json"
OURS = re.compile(rf"\.?{RUN_ID}|epoch-\d+|\.[a-z0-9_]{{8}}")  # the last is left where a save is cut off
ASIDE = ".aside-"  # begins the name of a folder that is being fetched or removed, and is nobody's where that is cut off


def address() -> str:
    """CHECKPOINTS where it is an address such as s3://BUCKET/FOLDER, which all machines reach, else empty."""
    given = os.environ.get("CHECKPOINTS", "")
    return given.rstrip("/") if "://" in given else ""


def checkpoints_dir(state_dir: Path) -> Path:
    """CHECKPOINTS, which several machines may share; a folder in the state directory without it, or for an address."""
    return state_dir / "runs" if address() else Path(os.environ.get("CHECKPOINTS") or state_dir / "runs")


def run_lock(state_dir: Path, key: str) -> FileLock:
    """What a run holds, so that no other of its key writes over its checkpoints: it lies where they do."""
    shared = "" if address() else os.environ.get("CHECKPOINTS", "")
    return file_lock(Path(shared or state_dir), key, timeout=0)


class Checkpoints:
    """The last and the best checkpoint of one training run, each a directory named by its epoch.

    With an `address` each is copied there, and what is there counts: `fetch` makes the directory the same. Raises
    RegistryError where its storage does not answer.
    """

    def __init__(self, directory: Path, address: str = "") -> None:
        self.directory = directory
        self._address = f"{address}/{directory.name}" if address else ""

    def fetch(self) -> None:
        """Gets what is at the address, from whichever machine; a checkpoint that is not whole there is left out."""
        if not self._address:
            return
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory.parent, prefix=ASIDE) as partial:
            whole = Path(partial, "whole")
            whole.mkdir()
            with self._answering() as storage:
                storage.download_artifacts("", str(whole))
            for path in whole.glob("epoch-*"):
                if not (path / STATE).exists():
                    shutil.rmtree(path)
            self._remove_here()
            whole.rename(self.directory)

    def save(self, epoch: int, best_epoch: int, tensors: Tensors, rest: State) -> None:
        """Writes the checkpoint of `epoch` and removes those that are neither the last nor the best."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".", ignore_cleanup_errors=True) as parent:
            partial = Path(parent) / "checkpoint"
            partial.mkdir()
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, partial / f"{name}.safetensors")
            (partial / STATE).write_text(json.dumps(rest))
            for path in partial.iterdir():
                _flush(path)
            os.replace(partial, self._path(epoch))
            _flush(self.directory)
        self._copy(*self._path(epoch).glob("*.safetensors"), self._path(epoch) / STATE)  # which makes it whole
        for path in self.directory.glob("epoch-*"):
            if path not in (self._path(epoch), self._path(best_epoch)):
                self._remove(path)

    def rehearse(self, tensors: Tensors, rest: State) -> None:
        """Writes a checkpoint here and removes it, for the time that it takes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".") as scratch:
            Checkpoints(Path(scratch)).save(0, 0, tensors, rest)

    def last_epoch(self) -> int | None:
        """The epoch of the last whole checkpoint."""
        epochs = [int(path.name.removeprefix("epoch-")) for path in self.directory.glob("epoch-*")]
        return max(epochs, default=None)

    def load(self, epoch: int, but: str = "") -> tuple[Tensors, State]:
        """What was saved: tensors by file and name, but for one file, and the rest; UserError if it is damaged."""
        path = self._path(epoch)
        try:
            tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors") if file.stem != but}
            return tensors, json.loads((path / STATE).read_text())
        except (SafetensorError, ValueError, FileNotFoundError) as error:
            raise UserError(
                f"the checkpoint {path} is damaged ({error})\nRemove {self.directory}, and the run starts anew."
            ) from error

    def forget_epochs(self) -> None:
        """Removes what an earlier run left."""
        for path in self.directory.glob("epoch-*"):
            self._remove(path)

    @property
    def run_id(self) -> str | None:
        """The MLflow run that the checkpoints belong to."""
        file = self.directory / RUN_ID
        return file.read_text() if file.exists() else None

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / f".{RUN_ID}"
        partial.write_text(run_id)
        partial.replace(self.directory / RUN_ID)
        self._copy(self.directory / RUN_ID)

    @property
    def are_ours(self) -> bool:
        """Whether a run of ours has made the directory, and nobody has put anything else there."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except PermissionError:
            return False
        return RUN_ID in names and all(map(OURS.fullmatch, names))

    def remove(self) -> None:
        self._remove_here()
        if self._address:
            with self._answering() as storage:
                storage.delete_artifacts()

    def _remove_here(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _copy(self, *files: Path) -> None:
        for file in files if self._address else ():
            folder = file.parent.relative_to(self.directory).as_posix()
            with self._answering() as storage:
                storage.log_artifact(str(file), None if folder == "." else folder)

    def _remove(self, path: Path) -> None:
        if self._address:
            with self._answering() as storage:
                storage.delete_artifacts(path.name)
        shutil.rmtree(path)

    @contextmanager
    def _answering(self) -> Iterator[Any]:
        """MLflow's access to the storage, with the settings that it has for artifacts."""
        try:
            yield get_artifact_repository(self._address)
        except Exception as error:  # each storage has its own
            reason = first_line(error)
            raise RegistryError(f"CHECKPOINTS: {self._address} can't be reached ({reason})") from error

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch-{epoch:04d}"


def _flush(path: Path) -> None:
    """Makes a file or a directory's entries survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flatten_optimizer(state: State) -> tuple[dict[str, Tensor], State]:
    """Splits an optimizer's `state_dict` into tensors by name and what JSON can hold."""
    tensors: dict[str, Tensor] = {}

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, dict):  # as pairs: JSON would make texts of its numbers
            return {"dict": [[key, described(entry)] for key, entry in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [described(entry) for entry in value]}
        return [described(entry) for entry in value] if isinstance(value, list) else value

    return tensors, described(state)


def unflatten_optimizer(tensors: dict[str, Tensor], rest: State) -> State:
    """The inverse of `flatten_optimizer`."""

    def restored(value: Any) -> Any:
        match value:
            case {"tensor": name}:
                return tensors[name]
            case {"dtype": name}:
                return getattr(torch, name)
            case {"tuple": entries}:
                return tuple(restored(entry) for entry in entries)
            case {"dict": pairs}:
                return {key: restored(entry) for key, entry in pairs}
            case [*entries]:
                return [restored(entry) for entry in entries]
        return value

    state: State = restored(rest)
    return state
