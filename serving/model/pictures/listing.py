"""Lists the files of folders and archives. Names of a folder are sorted on the disk: any number takes no memory."""

import hashlib
import os
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from serving.model.errors import NoPictures, UserError
from serving.model.pictures.files import DAMAGE, File, Files, fail, guarded, is_hidden, tar_files, zip_files
from serving.model.pictures.storage import Entry, Local

FILES_BETWEEN_MARKS = 10_000  # of a listing: how many are passed over at most until one is found by its index


class Folder(Files):
    """The files of a folder, here or at an address, by name.

    `read` turns an entry's path into a file's bytes; other processes get it as it is.
    """

    def __init__(self, entries: Iterable[Entry], read: Callable[[str], bytes]) -> None:
        super().__init__([], [], "")
        self._read = read
        self._listing = sqlite3.connect("", check_same_thread=False)  # a file of its own, gone with the process
        self._listing.executescript("PRAGMA journal_mode = OFF; PRAGMA cache_size = -32000")  # KB
        self._listing.execute(
            "CREATE TABLE files (name TEXT PRIMARY KEY, path BLOB, stamp TEXT, problem TEXT) WITHOUT ROWID"
        )
        folders: set[str] = set()
        self._listing.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", self._rows(entries, folders))
        self.folders = frozenset(folders)
        digest = hashlib.sha256()
        self._count = 0
        self._marks: list[str] = []
        for name, stamp in self._listing.execute("SELECT name, stamp FROM files ORDER BY name"):
            digest.update(f"{name}\0{stamp}\n".encode())
            if self._count % FILES_BETWEEN_MARKS == 0:
                self._marks.append(name)
            self._count += 1
        self.fingerprint = digest.hexdigest()

    def _rows(self, entries: Iterable[Entry], folders: set[str]) -> Iterator[tuple[str, bytes, str, str]]:
        for entry in entries:
            hidden = is_hidden(entry.name)
            if not entry.path:
                folders |= set() if hidden else {entry.name}
            elif hidden:
                self.hidden += 1
            else:
                yield entry.name, os.fsencode(entry.path), entry.stamp, entry.problem

    def __len__(self) -> int:
        return self._count

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self._found(0)]

    def read_from(self, start: int) -> Iterator[File]:
        for name, path, problem in self._found(start):
            read = partial(fail, problem) if problem else partial(self._read, os.fsdecode(path))
            yield File(name, partial(guarded, read))

    def ending(self, suffix: str) -> list[tuple[str, str]]:
        """Names and paths of the files whose names end so."""
        query = "SELECT name, path FROM files WHERE name LIKE ? ORDER BY name"
        return [(name, os.fsdecode(path)) for name, path in self._listing.execute(query, (f"%{suffix}",))]

    def _found(self, start: int) -> Iterator[tuple[str, bytes, str]]:
        """The rows from an index on."""
        if start < self._count:
            mark, passed_over = divmod(start, FILES_BETWEEN_MARKS)
            query = "SELECT name, path, problem FROM files WHERE name >= ? ORDER BY name LIMIT -1 OFFSET ?"
            yield from self._listing.execute(query, (self._marks[mark], passed_over))


def open_files(path: Path, setting: str) -> Files:
    """Lists the files of a folder, or of a zip or tar archive; `setting` named the path.

    Raises NoPictures where there is nothing, and UserError where it is none of these, or is damaged. A file that can't
    be read is listed, and says so.
    """
    if not path.exists():
        raise NoPictures(f"{setting}={path} does not exist; give a folder, or a zip or tar archive")
    try:
        if path.is_dir():
            return Folder(Local().entries(str(path)), Local().read)
        if tarfile.is_tarfile(path):  # before zip: a zip file may be the last member of a tar archive
            return tar_files(path)
        if zipfile.is_zipfile(path):
            return zip_files(path)
    except DAMAGE as error:
        raise UserError(f"{setting}={path} can't be read, or is damaged:\n{error}") from error
    raise UserError(f"{setting}={path} is neither a folder nor a whole zip or tar archive")
