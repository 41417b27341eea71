"""Parquet files with image files' bytes in them, as Hugging Face's data sets are. Needs pyarrow."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from serving.model.errors import UserError
from serving.model.pictures.files import File, Files


class ParquetFile(Files):
    """The pictures of a Parquet file in the order of its rows, one that is null as an empty file.

    A picture's name is its `path`, where the column holds structs of `bytes` and `path`; otherwise the row's number
    from 0. Raises UserError where the file is damaged, or its columns do not say which one holds the pictures.
    """

    def __init__(self, path: Path, setting: str) -> None:
        super().__init__(path, [])
        try:
            self._table = parquet.ParquetFile(path)
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
                batches = self._table.iter_batches(64, row_groups=[group], columns=[self._column])
                values = (value for batch in batches for value in batch.column(0).to_pylist())
                for row, value in enumerate(values, first):
                    if row >= start:
                        image = value if isinstance(value, dict) else {"bytes": value}
                        yield _file(image.get("path") or str(row), image["bytes"] or b"")
            first = last


def _file(name: str, content: bytes) -> File:
    return File(name, lambda: content)


def _image_column(file: str, schema: pa.Schema) -> str:
    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if holds_bytes(field.type)]
    if "image" not in columns and len(columns) != 1:
        found = f"{'several columns' if columns else 'no column'} of bytes among {', '.join(schema.names)}"
        raise UserError(f"{file} has {found};\nname the one with the image files' bytes image")
    return "image" if "image" in columns else columns[0]
