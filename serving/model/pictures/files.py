"""The one reader of folders, of zip and tar archives, and (by parquet.py) of Parquet files."""

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from serving.model.errors import PictureError, UserError
from serving.model.pictures.decoding import SUFFIXES, is_picture

# What damaged archives and file systems raise. RuntimeError: a zip file is locked by a password.
DAMAGE = OSError, EOFError, KeyError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError


class File(NamedTuple):
    """A file's name in its folder or archive, and what reads it in any thread.

    `read` raises a PictureError with the code `unreadable` where the file can't be read.
    """

    name: str
    read: Callable[[], bytes]


class Files:
    """Files in an order that is the same every time: by name, in a tar archive its own.

    `folders` are the names of all folders, also of empty ones; `sequential` files are read one after another.
    """

    def __init__(self, path: Path, files: list[File], folders: Iterable[str] = (), sequential: bool = False) -> None:
        self._path = path
        self._files = files
        self._sequential = sequential
        self.folders = frozenset(folders)

    def __len__(self) -> int:
        return len(self._files)

    def select(self, wanted: Callable[[str], bool]) -> "Files":
        """Only those files whose name is wanted."""
        return Files(self._path, [file for file in self._files if wanted(file.name)], self.folders, self._sequential)

    def read_from(self, start: int) -> Iterator[File]:
        """Yields the files from an index on."""
        for file in self._files[start:]:
            yield in_memory(file) if self._sequential else file

    def fingerprint(self) -> str:
        """The same as long as the names, sizes and times on the disk are."""
        digest = hashlib.sha256()
        for path in [self._path / file.name for file in self._files] if self._path.is_dir() else [self._path]:
            stat = path.stat() if path.exists() else path.lstat()  # a link to nothing has a time of its own
            name = str(path.relative_to(self._path))
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def open_pictures(path: Path, setting: str) -> Files:
    """Opens a folder, a zip or tar archive, or a Parquet file of pictures; raises as `open_files` does."""
    if path.is_file() and _starts_with(path, b"PAR1"):
        from serving.model.pictures.parquet import ParquetFile  # pyarrow, which the serving image lacks

        pictures: Files = ParquetFile(path, setting)
    else:
        pictures = open_files(path, setting).select(is_picture)
    if not len(pictures):
        raise UserError(f"{setting}={path}: there is no picture in it ({', '.join(sorted(SUFFIXES))})")
    return pictures


def open_files(path: Path, setting: str) -> Files:
    """Lists the files of a folder, or of a zip or tar archive, but for hidden ones; `setting` named the path.

    Raises UserError where it is none of these, or is damaged.
    """
    if not path.exists():
        raise UserError(f"{setting}={path} does not exist; give a folder, or a zip or tar archive")
    try:
        if path.is_dir():
            return _folder(path)
        if tarfile.is_tarfile(path):  # before zip: a zip file may be the last member of a tar archive
            return _tar(path)
        if zipfile.is_zipfile(path):
            return _zip(path)
    except DAMAGE as error:
        raise UserError(f"{setting}={path} can't be read, or is damaged:\n{error}") from error
    raise UserError(f"{setting}={path} is neither a folder nor a zip or tar archive")


def in_memory(file: File) -> File:
    """The same file, read already."""
    try:
        content = file.read()
    except PictureError as error:
        return File(file.name, partial(_raise, error))
    return File(file.name, lambda: content)


def _folder(root: Path) -> Files:
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    # A link to nothing counts: it is named as unreadable. Sockets and pipes don't.
    files = [name for name, path in paths.items() if path.is_file() or (path.is_symlink() and not path.exists())]
    folders = (name for name, path in paths.items() if path.is_dir())
    return Files(root, _visible((name, paths[name].read_bytes) for name in sorted(files)), folders)


def _zip(path: Path) -> Files:
    archive = zipfile.ZipFile(path)  # its read() may be called from several threads
    members = sorted(archive.infolist(), key=lambda member: member.filename)
    files = ((member.filename, partial(archive.read, member)) for member in members if not member.is_dir())
    return Files(path, _visible(files), (member.filename.rstrip("/") for member in members if member.is_dir()))


def _tar(path: Path) -> Files:
    archive = tarfile.open(path)  # noqa: SIM115 (it stays open as long as its files)

    def read(member: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(member)
        if file is None:
            raise FileNotFoundError(f"a link to {member.linkname}, which is not a file")
        return file.read()

    members = [(str(PurePosixPath(member.name)), member) for member in archive if not member.isdev()]
    files = ((name, partial(read, member)) for name, member in members if not member.isdir())
    return Files(path, _visible(files), (name for name, member in members if member.isdir()), sequential=True)


def _visible(files: Iterable[tuple[str, Callable[[], bytes]]]) -> list[File]:
    return [File(name, partial(_read, read)) for name, read in files if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _read(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except DAMAGE as error:
        raise PictureError("unreadable", f"The file can't be read: {error}.") from error


def _raise(error: PictureError) -> bytes:
    raise error


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(magic)) == magic
    except OSError:  # open_files has words for it
        return False
