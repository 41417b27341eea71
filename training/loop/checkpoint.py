"""Checkpoints that trainer.py resumes from: safetensors, and a JSON of the rest. Each appears whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from serving.model.errors import UserError, without_credentials

Tensors = dict[str, dict[str, Tensor]]  # by file, then by name
State = dict[str, Any]  # what JSON can hold


def checkpoints_dir(state_dir: Path) -> Path:
    """CHECKPOINTS, which several machines may share, or a folder in the state directory; UserError for an address."""
    given = os.environ.get("CHECKPOINTS") or str(state_dir / "runs")
    if "://" in given:
        raise UserError(
            f"CHECKPOINTS={without_credentials(given)} is an address, and checkpoints are renamed when they are whole\n"
            "Give a path, such as a file system that all nodes share, or mount the storage."
        )
    return Path(given)


class Checkpoints:
    """The last and the best checkpoint of one training run, each a directory named by its epoch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, epoch: int, best_epoch: int, tensors: Tensors, rest: State) -> None:
        """Writes the checkpoint of `epoch` and removes those that are neither the last nor the best."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".", ignore_cleanup_errors=True) as parent:
            partial = Path(parent) / "checkpoint"
            partial.mkdir()
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, partial / f"{name}.safetensors")
            (partial / "state.json").write_text(json.dumps(rest))
            for path in partial.iterdir():
                _flush(path)
            os.replace(partial, self._path(epoch))
            _flush(self.directory)
        for path in self.directory.glob("epoch-*"):
            if path not in (self._path(epoch), self._path(best_epoch)):
                shutil.rmtree(path)

    def last_epoch(self) -> int | None:
        """The epoch of the last whole checkpoint."""
        epochs = [int(path.name.removeprefix("epoch-")) for path in self.directory.glob("epoch-*")]
        return max(epochs, default=None)

    def load(self, epoch: int) -> tuple[Tensors, State]:
        """What was saved: tensors by file and name, and the rest; UserError if it is damaged."""
        path = self._path(epoch)
        try:
            tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
            return tensors, json.loads((path / "state.json").read_text())
        except (SafetensorError, ValueError, FileNotFoundError) as error:
            raise UserError(
                f"the checkpoint {path} is damaged ({error})\nRemove {self.directory}, and the run starts anew."
            ) from error

    def forget_epochs(self) -> None:
        """Removes what an earlier run left."""
        for path in self.directory.glob("epoch-*"):
            shutil.rmtree(path)

    @property
    def run_id(self) -> str | None:
        """The MLflow run that the checkpoints belong to."""
        file = self.directory / "mlflow_run_id"
        return file.read_text() if file.exists() else None

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / ".mlflow_run_id"
        partial.write_text(run_id)
        partial.replace(self.directory / "mlflow_run_id")

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

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
