"""Parquet files with image files' bytes in them, as Hugging Face's data sets are. Needs pyarrow."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pyarrow.fs import FileSystem, LocalFileSystem

from serving.model.errors import UserError
from serving.model.pictures.files import File, Files, guarded


class ParquetFile(Files):
    """The pictures of a Parquet file in the order of its rows.

    A picture's name is its `path`, where the column holds structs of `bytes` and `path`; otherwise the row's number
    from 0. Raises UserError where the file is damaged, or its columns do not say which one holds the pictures.
    """

    def __init__(self, path: Path, setting: str, filesystem: FileSystem | None = None) -> None:
        filesystem = filesystem or LocalFileSystem()
        found = filesystem.get_file_info(str(path))
        super().__init__([], [], hashlib.sha256(f"{found.size} {found.mtime_ns}".encode()).hexdigest())
        self._path = path
        self._filesystem = filesystem
        try:
            self._table = parquet.ParquetFile(filesystem.open_input_file(str(path)))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{setting}={path} can't be read, or is damaged:\n{error}") from error
        self._column = _image_column(f"{setting}={path}", self._table.schema_arrow)

    def __len__(self) -> int:
        return int(self._table.metadata.num_rows)

    def read_from(self, start: int) -> Iterator[File]:
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
        if content is None and path and not {"..", "/"} & {*Path(path).parts}:
            return File(path, partial(guarded, partial(_read, self._filesystem, str(self._path.parent / path))))
        return File(path or str(row), lambda: content or b"")


class ParquetFiles(Files):
    """The pictures of several Parquet files, one file after another: named FILE/NAME.

    Raises as ParquetFile does, also while they are read.
    """

    def __init__(
        self, files: Sequence[tuple[str, str]], setting: str, filesystem: FileSystem, fingerprint: str
    ) -> None:
        super().__init__([], [], fingerprint)
        self._open = partial(ParquetFile, setting=setting, filesystem=filesystem)
        self._rows = {file: len(self._open(Path(file[1]))) for file in files}

    def __len__(self) -> int:
        return sum(self._rows.values())

    def read_from(self, start: int) -> Iterator[File]:
        first = 0
        for (name, path), rows in self._rows.items():
            if start < first + rows:
                pictures = self._open(Path(path)).read_from(max(start - first, 0))
                yield from (File(f"{name.removesuffix('.parquet')}/{file.name}", file.read) for file in pictures)
            first += rows


def _read(filesystem: FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


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
