"""A Parquet file that is written part by part, so that a kill costs no more than the parts at work."""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

import pyarrow as pa
from pyarrow import parquet

from serving.batch.storage import is_address, located
from serving.model.errors import RegistryError, UserError

log = logging.getLogger(__name__)


class Parts:
    """The parts of `target` that are there, in `<target>.parts/`, until they are merged.

    A target is a path, or an address such as s3://BUCKET/out.parquet. `schema` is that of the rows; its metadata names
    what they were made from. `sizes` are the rows of each part. Parts of another schema or size are removed, and a
    damaged one is missing. Raises UserError where `target` can't be written, or another run on this machine writes it.
    """

    def __init__(self, target: str, schema: pa.Schema, sizes: list[int]) -> None:
        self._target = target
        self._schema = schema
        self._sizes = sizes
        self._storage, self._path = located(target)
        self._directory = f"{self._path}.parts"
        self._lock = self._prepared()
        try:
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
        write = partial(parquet.write_table, table, write_page_checksum=True)
        self._storage.write(self._part(number), write)
        self.missing.remove(number)

    def merge(self) -> None:
        """Writes all parts to `target` and removes them; RegistryError where one turns out to be damaged."""
        self._storage.write(self._path, self._write_all)
        self._storage.remove(self._directory)

    def _prepared(self) -> int | None:
        """Makes the parts' folder on this machine, and returns what locks it; addresses need none, and have no lock."""
        if self._storage.is_folder(self._path):
            raise UserError(f"target={self._target} is a folder; give the name of a file, such as out.parquet")
        if is_address(self._target):
            return None
        try:
            os.makedirs(self._directory, exist_ok=True)
            lock = os.open(self._directory, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"target={self._target} can't be written: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"target={self._target} is being written by another run; wait for it") from None
        return lock

    def _missing(self) -> list[int]:
        names = {entry.name for entry in self._storage.entries(self._directory)}
        missing = []
        for number, size in enumerate(self._sizes):
            try:
                if os.path.basename(self._part(number)) in names:
                    with self._opened(number) as part:
                        schema, rows = part.schema_arrow, part.metadata.num_rows
                    if schema.equals(self._schema, check_metadata=True) and rows == size:
                        continue
                    log.warning("%s belongs to other pictures or another model; starting over", self._directory)
                    self._remove_all(names)
                    return [*range(len(self._sizes))]
            except (OSError, pa.ArrowException) as error:
                if not _is_damage(error):
                    raise
                log.warning("%s is damaged, and made anew: %s", self._storage.address(self._part(number)), error)
            missing.append(number)
        return missing

    def _remove_all(self, names: Iterable[str]) -> None:
        for name in names:  # the folder is locked, and stays
            self._storage.remove(f"{self._directory}/{name}")

    @contextmanager
    def _opened(self, number: int) -> Iterator[parquet.ParquetFile]:
        with (
            self._storage.open(self._part(number)) as file,
            parquet.ParquetFile(file, page_checksum_verification=True) as part,
        ):
            yield part

    def _part(self, number: int) -> str:
        return f"{self._directory}/{number:06d}.parquet"

    def _write_all(self, file: IO[bytes]) -> None:
        with parquet.ParquetWriter(file, self._schema) as writer:
            for number in range(len(self._sizes)):
                writer.write_table(self._read(number))

    def _read(self, number: int) -> pa.Table:
        try:
            with self._opened(number) as part:
                return part.read()
        except (OSError, pa.ArrowException) as error:
            if not _is_damage(error):
                raise
            part = self._part(number)
            self._storage.remove(part)
            place = self._storage.address(part)
            raise RegistryError(f"{place} is damaged, and removed; start the run again, which makes it anew") from error


def _is_damage(error: Exception) -> bool:
    """Whether a file's content is wrong; what the operating system raises has a number."""
    return not isinstance(error, MemoryError) and not getattr(error, "errno", None)
