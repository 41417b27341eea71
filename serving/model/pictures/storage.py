"""What holds pictures as files by their paths: this machine. serving/batch/storage.py has those at addresses."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from serving.model.errors import UserError
from serving.model.pictures.files import is_hidden, tidy


class Entry(NamedTuple):
    """A file of a folder: its name there, its path, what changes when it does, and why it can't be read.

    Without a path it is a folder.
    """

    name: str
    path: str
    stamp: str
    problem: str = ""


class Storage(Protocol):
    """Files by their paths, which mean what the storage says: nothing in them is an escape.

    Of what is not there it raises FileNotFoundError. One at an address raises RegistryError where it does not answer,
    and UserError where it never will, such as without permission. Other processes get it as it is.
    """

    def __hash__(self) -> int: ...

    def address(self, path: str) -> str:
        """What people call the path."""

    def read(self, path: str) -> bytes: ...

    def open(self, path: str) -> BinaryIO:
        """The file, to be read anywhere in it."""

    def stamp(self, path: str) -> str:
        """What changes when the file does."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """What lies in a folder and those in it, in no order; nothing where there is no such folder."""


@dataclass(frozen=True)
class Local:
    """The files of this machine. Their paths need not be UTF-8."""

    def address(self, path: str) -> str:
        return path

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb")

    def stamp(self, path: str) -> str:
        found = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nothing has a time of its own
        return f"{found.st_size} {found.st_mtime_ns}"

    def entries(self, folder: str) -> Iterator[Entry]:
        """Follows links, also to folders; what can't be entered is a file that can't be read."""
        if os.path.isdir(folder):
            yield from self._below(Path(folder), Path(folder), ())

    def _below(self, root: Path, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        above = (*above, _place(folder))
        with os.scandir(folder) as found:
            for path in (folder / entry.name for entry in found):
                name, stamp, problem = tidy(path.relative_to(root).as_posix()), "", ""
                try:
                    if path.is_dir() and not is_hidden(path.name):
                        yield Entry(name, "", "")
                        if not (problem := _obstacle(path, above)):
                            yield from self._below(root, path, above)
                            continue
                    elif not (path.is_file() or path.is_symlink()):
                        problem = "it is no file"
                    stamp = self.stamp(str(path))
                except FileNotFoundError:  # it was there a moment ago
                    continue
                except PermissionError as error:
                    problem = str(error)
                yield Entry(name, str(path), stamp, problem)


def _place(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _obstacle(folder: Path, above: tuple[tuple[int, int], ...]) -> str:
    """Why a folder can't be entered; empty: it can."""
    try:
        os.scandir(folder).close()
    except PermissionError as error:
        return str(error)
    return "a link to a folder that it lies in" if _place(folder) in above else ""


def not_seen(place: str) -> UserError:
    """The error for a file or folder that the process which listed it sees, and this one does not."""
    node = os.uname().nodename
    return UserError(f"{place} is not there on the node {node}\nGive a place that every node sees: s3://BUCKET/...")
