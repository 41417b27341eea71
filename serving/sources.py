"""Where pictures to score come from: a folder, an archive, or a Parquet file with image files in it."""

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet

from serving.errors import StartError

# training/sources.py takes the same.
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}


class Picture(NamedTuple):
    """A name, and what reads the image file's bytes, in any thread; it may raise anything where they can't be read."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """Pictures in an order that is the same every time.

    Attributes:
        fingerprint: of the names, sizes and times of the files on the disk.
        count: how many pictures there are.
        read_from: yields the pictures from an index on.
    """

    fingerprint: str
    count: int
    read_from: Callable[[int], Iterator[Picture]]


def open_source(path: Path) -> Source:
    """Lists what is in a folder, a zip or tar archive, or a Parquet file.

    Raises:
        StartError: there is nothing that can be read, or no picture in it.
    """
    if not path.exists():
        raise StartError(f"source={path} does not exist;\ngive a folder, a zip or tar archive, or a Parquet file")
    try:
        if path.is_dir():
            source = _folder(path)
        elif _is_parquet(path):
            source = _parquet(path)
        elif tarfile.is_tarfile(path):  # before zip: a zip file may be the last member of a tar archive
            source = _tar(path)
        elif zipfile.is_zipfile(path):
            source = _zip(path)
        else:
            raise StartError(f"source={path} is not a folder, a zip or tar archive, nor a Parquet file")
    except (OSError, EOFError, pa.ArrowException, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise StartError(f"source={path} can't be read, or is damaged:\n{error}") from error
    if not source.count:
        raise StartError(f"source={path}: there is no picture in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return source


def _folder(root: Path) -> Source:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    pictures = [Picture(name, files[name].read_bytes) for name in sorted(files) if _is_picture(name)]
    return _listed(pictures, _fingerprint((name, files[name]) for name, _ in pictures))


def _zip(path: Path) -> Source:
    archive = zipfile.ZipFile(path)  # its read() may be called from several threads
    members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    pictures = [Picture(info.filename, partial(archive.read, info)) for info in members if _is_picture(info.filename)]
    return _listed(pictures, _fingerprint([("", path)]))


def _listed(pictures: list[Picture], fingerprint: str) -> Source:
    return Source(fingerprint, len(pictures), lambda start: iter(pictures[start:]))


def _tar(path: Path) -> Source:
    archive = tarfile.open(path)  # noqa: SIM115 (read_from goes on with it)
    members = [member for member in archive if not member.isdir() and _is_picture(member.name)]

    def read_from(start: int) -> Iterator[Picture]:
        # In the archive's own order and in this thread: a compressed archive can only be read forwards.
        for member in members[start:]:
            try:
                file = archive.extractfile(member)
            except KeyError:  # a link to what is not in the archive
                file = None
            yield _read(str(PurePosixPath(member.name)), file.read() if file else b"")

    return Source(_fingerprint([("", path)]), len(members), read_from)


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path) -> Source:
    file = parquet.ParquetFile(path)
    column = _image_column(path, file.schema_arrow)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]

    def read_from(start: int) -> Iterator[Picture]:
        first = 0
        for group, size in enumerate(sizes):
            if start < first + size:
                batches = file.iter_batches(64, row_groups=[group], columns=[column])
                values = (value for batch in batches for value in batch.column(0).to_pylist())
                for row, value in enumerate(values, first):
                    if row >= start:
                        image = value if isinstance(value, dict) else {"bytes": value}
                        yield _read(image.get("path") or str(row), image["bytes"] or b"")
            first += size

    return Source(_fingerprint([("", path)]), file.metadata.num_rows, read_from)


def _image_column(path: Path, schema: pa.Schema) -> str:
    """The column of bytes, or of structs with `bytes` and perhaps `path` as Hugging Face's data sets have."""

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if holds_bytes(field.type)]
    if "image" not in columns and len(columns) != 1:
        raise StartError(
            f"source={path} has {'several columns' if columns else 'no column'} of bytes among "
            f"{', '.join(schema.names)};\nname the one with the image files' bytes image"
        )
    return "image" if "image" in columns else columns[0]


def _read(name: str, content: bytes) -> Picture:
    return Picture(name, lambda: content)


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        stat = path.stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
