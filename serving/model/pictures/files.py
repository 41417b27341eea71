"""Files by name, and those of zip and tar archives."""

import contextlib
import hashlib
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from serving.model.errors import PictureError

# What damaged archives and file systems raise. RuntimeError: a zip file is locked by a password.
DAMAGE = (
    *(OSError, EOFError, KeyError, ValueError, RuntimeError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
ZIP_METHODS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
PARQUET = b"PAR1"


class File(NamedTuple):
    """A file's name in its folder or archive, and what reads it in any thread.

    The name is a text that can be printed, with `/` between folders. `read` raises a PictureError with the code
    `unreadable` where the file can't be read.
    """

    name: str
    read: Callable[[], bytes]


class Files:
    """Files in an order that is the same every time: by name, in a tar archive its own. Hidden ones are only counted.

    `folders` are the names of all folders, also of empty ones; `sequential` files are read one after another. The
    `fingerprint` is the same as long as the names, sizes and times on the disk are.
    """

    def __init__(
        self,
        files: Iterable[tuple[str, Callable[[], bytes]]],
        folders: Iterable[str],
        fingerprint: str,
        sequential: bool = False,
    ) -> None:
        named = [(tidy(name), read) for name, read in files]
        visible = {name: File(name, partial(guarded, read)) for name, read in named if not is_hidden(name)}
        # The last of one name is what unpacking would leave.
        order = {name: place for place, (name, _) in enumerate(named)}
        self._files = sorted(visible.values(), key=lambda file: order[file.name] if sequential else file.name)
        self._sequential = sequential
        self.hidden = sum(is_hidden(name) for name, _ in named)
        self.folders = frozenset(name for name in map(tidy, folders) if not is_hidden(name)) - {"."}
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._files)

    @property
    def names(self) -> list[str]:
        return [file.name for file in self._files]

    def read_from(self, start: int) -> Iterator[File]:
        """Yields the files from an index on."""
        for file in self._files[start:]:
            yield in_memory(file) if self._sequential else file


def is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except OSError:  # open_files has words for it
        return False


def in_memory(file: File) -> File:
    """The same file, read already."""
    try:
        content = file.read()
    except PictureError as error:
        return File(file.name, partial(_raise, error))
    return File(file.name, lambda: content)


def _stamp(path: Path) -> str:
    found = path.stat()
    return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()


def zip_files(path: Path) -> Files:
    archive = zipfile.ZipFile(path)  # its read() may be called from several threads
    members = {_zip_name(member): member for member in archive.infolist()}
    if unknown := {member.compress_type for member in members.values()} - {*ZIP_METHODS}:
        method = zipfile.compressor_names.get(unknown.pop(), "another method")  # type: ignore[attr-defined]
        raise zipfile.BadZipFile(f"it is compressed by {method}, which can't be read; pack it as tar or plain zip")

    def read(name: str) -> bytes:
        content = archive.read(members[name])
        if not stat.S_ISLNK(members[name].external_attr >> 16):
            return content
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), content.decode()))
        if target not in members:
            raise FileNotFoundError(f"it is a link to {target}, which is not in the archive")
        return read(target)

    files = ((name, partial(read, name)) for name in members if not name.endswith("/"))
    return Files(files, (name for name in members if name.endswith("/")), _stamp(path))


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name as its packer meant it: UTF-8 without the flag that says so, and Windows' backslashes."""
    name = member.filename
    if not member.flag_bits & 0x800:  # read as code page 437
        with contextlib.suppress(UnicodeError):
            name = member.orig_filename.encode("cp437").decode()
    return name.replace("\\", "/")


def tar_files(path: Path) -> Files:
    archive = tarfile.open(path)  # noqa: SIM115 (it stays open as long as its files)
    members = [member for member in archive if not member.isdev()]
    _check_end(archive.fileobj, archive.offset)

    def read(member: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(member)
        if file is None:
            raise FileNotFoundError(f"it is a link to {member.linkname}, which is no file")
        return file.read()

    files = ((member.name, partial(read, member)) for member in members if not member.isdir())
    folders = (member.name for member in members if member.isdir())
    return Files(files, folders, _stamp(path), sequential=True)


def _check_end(file: Any, offset: int) -> None:
    """Raises ReadError where a tar archive does not end at `offset`, where tarfile stops without a word."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        raise tarfile.ReadError(f"it ends at byte {offset} without an end mark, so part of it may be missing")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"at byte {offset} there is neither a file nor the end mark")
    while block := file.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"there is more after its end mark at byte {offset}; is it two archives in one?")


def tidy(name: str) -> str:
    """A name without `./`, and with what is not UTF-8 in it written as an escape."""
    return str(PurePosixPath(name.encode(errors="surrogateescape").decode(errors="backslashreplace"))).lstrip("/")


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def guarded(read: Callable[[], bytes]) -> bytes:
    """Reads; what goes wrong becomes a PictureError with the code `unreadable`."""
    try:
        return read()
    except DAMAGE as error:
        raise PictureError("unreadable", f"The file can't be read: {error}.") from error


def fail(reason: str) -> bytes:
    raise OSError(reason)


def _raise(error: PictureError) -> bytes:
    raise error
