"""Parquet files with image files' bytes in them, as Hugging Face's data sets are. Needs pyarrow."""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from serving.model.errors import UserError
from serving.model.pictures.files import File, Files, guarded
from serving.model.pictures.storage import Local, Storage, not_seen

OUTAGES = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # of a disk, or a file system of the network


class ParquetFile(Files):
    """The pictures of a Parquet file in the order of its rows.

    A picture's name is its `path`, where the column holds structs of `bytes` and `path`; otherwise the row's number
    from 0. Raises UserError where the file is damaged, or its columns do not say which one holds the pictures.
    """

    def __init__(self, path: Path | str, setting: str, storage: Storage | None = None) -> None:
        self._path = str(path)
        self._setting = setting
        self._storage = storage or Local()
        super().__init__([], [], hashlib.sha256(self._storage.stamp(self._path).encode()).hexdigest())
        with self._readable():
            self._table = parquet.ParquetFile(self._storage.open(self._path))
        self._column = _image_column(self._name, self._table.schema_arrow)

    @property
    def _name(self) -> str:
        return f"{self._setting}={self._storage.address(self._path)}"

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowMemoryError:
            raise
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None) in OUTAGES:
                raise
            raise UserError(f"{self._name} can't be read, or is damaged:\n{error}") from error

    def __len__(self) -> int:
        return int(self._table.metadata.num_rows)

    def read_from(self, start: int) -> Iterator[File]:
        with self._readable():
            yield from self._read_from(start)

    def rows(self, first: int, count: int) -> "list[Rows]":
        """So many pictures from an index on, for other processes."""
        return [Rows("", self._path, self._setting, self._storage, self.fingerprint, first, count)]

    def _read_from(self, start: int) -> Iterator[File]:
        first = 0
        for group in range(self._table.metadata.num_row_groups):
            last = first + self._table.metadata.row_group(group).num_rows
            if start < last:
                row = first
                for batch in self._table.iter_batches(64, row_groups=[group], columns=[self._column]):
                    wanted = batch.column(0).slice(max(start - row, 0))
                    row += len(batch)
                    yield from map(self._file, range(row - len(wanted), row), wanted.to_pylist())
            first = last

    def labels(self) -> list[str | None]:
        """The class of every row: the column `label`, named as Hugging Face's metadata says; None where there is none.

        Raises UserError where there is no such column.
        """
        schema = self._table.schema_arrow
        if "label" not in schema.names:
            raise UserError(f"{self._path} has no column label among {', '.join(schema.names)}")
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get("label", {}).get("names")
        values = self._table.read(columns=["label"]).column(0).to_pylist()
        # Hugging Face's data sets have -1 for an unknown class.
        known = [None if value is None or (isinstance(value, int) and value < 0) else value for value in values]
        return [None if value is None else str(names[value] if names else value) for value in known]

    def _file(self, row: int, value: Any) -> File:
        image = value if isinstance(value, dict) else {"bytes": value}
        path, content = image.get("path"), image["bytes"]
        if content is None and path and not {"..", "/"} & {*PurePosixPath(path).parts}:
            beside = self._path[: self._path.rfind("/") + 1] + path
            return File(path, partial(guarded, partial(self._storage.read, beside)))
        return File(path or str(row), lambda: content or b"")


class ParquetFiles(Files):
    """The pictures of a folder's Parquet files, one file after another: named FILE/NAME.

    Raises as ParquetFile does, also while they are read.
    """

    def __init__(self, files: Iterable[tuple[str, str]], setting: str, storage: Storage, fingerprint: str) -> None:
        super().__init__([], [], fingerprint)
        self._shards: list[Rows] = []
        for name, path in files:
            file = ParquetFile(path, setting, storage)
            (rows,) = file.rows(0, len(file))
            self._shards.append(rows._replace(above=f"{name.removesuffix('.parquet')}/"))

    def __len__(self) -> int:
        return sum(shard.length for shard in self._shards)

    def read_from(self, start: int) -> Iterator[File]:
        for rows in self.rows(start, len(self) - start):
            yield from rows.read()

    def rows(self, first: int, count: int) -> "list[Rows]":
        """So many pictures from an index on, for other processes."""
        found = []
        for shard in self._shards:
            begin, end = max(first, 0), min(first + count, shard.length)
            if begin < end:
                found.append(shard._replace(first=begin, length=end - begin))
            first -= shard.length
        return found


class Rows(NamedTuple):
    """Some pictures of a Parquet file, whose names get `above` before them. Other processes get it as it is."""

    above: str
    path: str
    setting: str
    storage: Storage
    fingerprint: str
    first: int
    length: int

    def read(self) -> Iterator[File]:
        """Yields the pictures; raises UserError where this process does not see the same file."""
        try:
            file = _opened(self.path, self.setting, self.storage, self.fingerprint)
        except FileNotFoundError as error:
            raise self._not_seen() from error
        if file.fingerprint != self.fingerprint:
            raise self._not_seen()
        for picture in islice(file.read_from(self.first), self.length):
            yield File(self.above + picture.name, picture.read)

    def _not_seen(self) -> UserError:
        return not_seen(f"{self.setting}={self.storage.address(self.path)}")


@lru_cache(maxsize=1)  # parts follow one another
def _opened(path: str, setting: str, storage: Storage, fingerprint: str) -> ParquetFile:  # of another one anew
    return ParquetFile(path, setting, storage)


def _image_column(file: str, schema: pa.Schema) -> str:
    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if holds_bytes(field.type)]
    if "image" not in columns and len(columns) != 1:
        found = f"{'several columns' if columns else 'no column'} of bytes among {', '.join(schema.names)}"
        raise UserError(f"{file} has {found};\nrename the column that holds the image files to image")
    return "image" if "image" in columns else columns[0]
