"""A Parquet file that is written part by part, so that a kill costs no more than the parts at work."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs, parquet

from serving.batch.storage import answering, is_address, located
from serving.model.errors import UserError

log = logging.getLogger(__name__)


class Parts:
    """The parts of `target` that are there, in `<target>.parts/`, until they are merged.

    A target is a path, or an address such as s3://BUCKET/out.parquet. `schema` is that of the rows; its metadata names
    what they were made from. `sizes` are the rows of each part. Parts of another schema or size are removed. Raises
    UserError where `target` can't be written, or another run on this machine is writing it.
    """

    def __init__(self, target: str, schema: pa.Schema, sizes: list[int]) -> None:
        self._target = target
        self._schema = schema
        self._sizes = sizes
        self._filesystem, self._path = located(target)
        self._directory = f"{self._path}.parts"
        with answering(target):
            self._lock = self._prepared()
        try:
            with answering(target):
                self.missing = self._missing()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def add(self, number: int, table: pa.Table) -> None:
        """Keeps a part, under the metadata of all."""
        table = table.replace_schema_metadata(self._schema.metadata)
        with answering(self._target):
            self._write_whole(self._part(number), partial(parquet.write_table, table))
        self.missing.remove(number)

    def merge(self) -> None:
        """Writes all parts to `target` and removes them."""
        with answering(self._target):
            self._write_whole(self._path, self._write_all)
            self._filesystem.delete_dir(self._directory)

    def _prepared(self) -> int | None:
        """Makes the parts' folder; returns what locks it, where it is on this machine."""
        if self._filesystem.get_file_info(self._path).type == fs.FileType.Directory:
            raise UserError(f"target={self._target} is a folder; give the name of a file, such as out.parquet")
        try:
            self._filesystem.create_dir(self._directory)
            if is_address(self._target):
                return None
            lock = os.open(self._directory, os.O_RDONLY)
        except OSError as error:
            if is_address(self._target):
                raise
            raise UserError(f"target={self._target} can't be written: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"target={self._target} is being written by another run; wait for it") from None
        return lock

    def _missing(self) -> list[int]:
        found = self._filesystem.get_file_info(fs.FileSelector(self._directory))
        names = {file.base_name for file in found}
        there = [number for number in range(len(self._sizes)) if os.path.basename(self._part(number)) in names]
        for number in there:
            with self._opened(number) as part:
                schema, rows = part.schema_arrow, part.metadata.num_rows
            if not schema.equals(self._schema, check_metadata=True) or rows != self._sizes[number]:
                log.warning("%s belongs to other pictures or another model; starting over", self._directory)
                self._filesystem.delete_dir_contents(self._directory)
                there = []
                break
        return sorted({*range(len(self._sizes))} - {*there})

    def _opened(self, number: int) -> parquet.ParquetFile:
        return parquet.ParquetFile(self._filesystem.open_input_file(self._part(number)))

    def _part(self, number: int) -> str:
        return f"{self._directory}/{number:06d}.parquet"

    def _write_all(self, file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, self._schema) as writer:
            for number in range(len(self._sizes)):
                with self._opened(number) as part:
                    writer.write_table(part.read())

    def _write_whole(self, path: str, write: Callable[[BinaryIO], None]) -> None:
        """Writes a file so that it is there whole or not at all, also after a power cut."""
        if not is_address(self._target):
            beside = Path(f"{path}.partial")
            with open(beside, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            return
        with tempfile.TemporaryFile() as whole:  # what fails while it is made must not be there in part
            write(whole)
            whole.seek(0)
            with self._filesystem.open_output_stream(path) as out:
                shutil.copyfileobj(whole, out, 2**23)
