"""Folders of any number of pictures, here or at an address: their names are sorted on the disk, not in memory."""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from serving.model.pictures.files import File, Files, fail, guarded, is_hidden, tidy, walk


class Entry(NamedTuple):
    """A file of a folder: its name there, where it lies, what changes when it does, and why it can't be read."""

    name: str
    place: str
    stamp: str
    problem: str = ""


class Folder(Files):
    """The files of a folder by name.

    `read` turns an entry's place into a file's bytes; other processes get it as it is.
    """

    def __init__(self, entries: Iterable[Entry], read: Callable[[str], bytes]) -> None:
        super().__init__([], [], "")
        self._read = read
        self._listing = sqlite3.connect("", check_same_thread=False)  # a file of its own, gone with the process
        self._listing.executescript("PRAGMA journal_mode = OFF; PRAGMA cache_size = -32000")  # KB
        self._listing.execute(
            "CREATE TABLE files (name TEXT PRIMARY KEY, place BLOB, stamp TEXT, problem TEXT) WITHOUT ROWID"
        )
        rows = (
            (tidy(entry.name), os.fsencode(entry.place), entry.stamp, entry.problem)
            for entry in entries
            if not is_hidden(entry.name)
        )
        self._listing.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
        digest = hashlib.sha256()
        self._count = 0
        for name, stamp in self._listing.execute("SELECT name, stamp FROM files ORDER BY name"):
            digest.update(f"{name}\0{stamp}\n".encode())
            self._count += 1
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def read_from(self, start: int) -> Iterator[File]:
        query = "SELECT name, place, problem FROM files ORDER BY name LIMIT -1 OFFSET ?"
        for name, place, problem in self._listing.execute(query, (start,)):
            read = partial(fail, problem) if problem else partial(self._read, os.fsdecode(place))
            yield File(name, partial(guarded, read))

    def only(self, suffix: str) -> bool:
        """Whether all names end so, and there is one."""
        query = "SELECT count(*) FROM files WHERE name NOT LIKE ?"
        return bool(self._count) and self._listing.execute(query, (f"%{suffix}",)).fetchone() == (0,)

    def places(self) -> Iterator[tuple[str, str]]:
        """Name and place of each file."""
        for name, place in self._listing.execute("SELECT name, place FROM files ORDER BY name"):
            yield name, os.fsdecode(place)


def local_folder(root: Path) -> Folder:
    """Follows links, also to folders; what can't be entered is listed as a file that can't be read."""

    def entries() -> Iterator[Entry]:
        for name, path, problem in walk(root):
            if path is not None:
                found = path.stat() if path.exists() else path.lstat()  # a link to nothing has a time of its own
                yield Entry(name, str(path), f"{found.st_size} {found.st_mtime_ns}", problem)

    return Folder(entries(), read_file)


def read_file(place: str) -> bytes:
    return Path(place).read_bytes()
