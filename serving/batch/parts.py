"""A Parquet file that is written part by part, so that a kill costs no more than the part at work."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet

from serving.model.errors import UserError

log = logging.getLogger(__name__)


class Parts:
    """The parts of `target` that are there, in `<target>.parts/`, until they are merged.

    `schema` is that of the rows; its metadata names what they were made from. Parts of another schema are removed.
    Raises UserError where `target` can't be written, or another run is writing it.
    """

    def __init__(self, target: Path, schema: pa.Schema) -> None:
        if target.is_dir():
            raise UserError(f"target={target} is a folder; give the name of a file, such as out.parquet")
        self._target = target
        self._schema = schema
        self._directory = target.with_name(f"{target.name}.parts")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._directory, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"target={target} can't be written: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(f"target={target} is being written by another run; wait for it") from None
        self.rows = self._rows()  # of each part

    def close(self) -> None:
        os.close(self._lock)

    def add(self, table: pa.Table) -> None:
        _write_whole(self._part(len(self.rows)), partial(parquet.write_table, table))
        self.rows.append(table.num_rows)

    def merge(self) -> None:
        """Writes all parts to `target` and removes them."""
        _write_whole(self._target, self._write_all)
        shutil.rmtree(self._directory)

    def _rows(self) -> list[int]:
        rows: list[int] = []
        while self._part(len(rows)).exists():
            with parquet.ParquetFile(self._part(len(rows))) as part:
                schema, count = part.schema_arrow, part.metadata.num_rows
            if not schema.equals(self._schema, check_metadata=True):
                log.warning("%s belongs to other pictures or another model; starting over", self._directory)
                for path in self._directory.iterdir():
                    path.unlink()
                return []
            rows.append(count)
        return rows

    def _part(self, number: int) -> Path:
        return self._directory / f"{number:06d}.parquet"

    def _write_all(self, file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, self._schema) as writer:
            for number in range(len(self.rows)):
                writer.write_table(parquet.read_table(self._part(number)))


def _write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut."""
    beside = path.with_name(f"{path.name}.partial")
    with open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
