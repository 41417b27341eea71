"""Where the pictures of a batch come from, and portions of them that other processes read as well."""

import logging
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from serving.batch.storage import is_address, located
from serving.model.errors import NoPictures, UserError
from serving.model.pictures.files import DAMAGE, PARQUET, File, Files
from serving.model.pictures.listing import Folder, open_files
from serving.model.pictures.parquet import ParquetFile, ParquetFiles, Rows
from serving.model.pictures.storage import not_seen

log = logging.getLogger(__name__)
Portion = Callable[[], Iterator[File]]


class Source:
    """Pictures in an order that is the same every time.

    `place` is what names them to other processes, `fingerprint` the same as long as names, sizes and times are.
    """

    def __init__(self, place: str, files: Files) -> None:
        self.place = place
        self.fingerprint = files.fingerprint
        self._files = files
        self._next = -1
        self._rest: Iterator[File] = iter(())

    def __len__(self) -> int:
        return len(self._files)

    def read_from(self, start: int) -> Iterator[File]:
        """The files from an index on."""
        return self._files.read_from(start)

    def read(self, first: int, count: int) -> Iterator[File]:
        """Yields so many files from an index on, without going back where they follow those of the last call.

        They must be taken before this is called again.
        """
        if first != self._next:
            self._rest = self.read_from(first)
        self._next = first + count
        return islice(self._rest, count)

    def portion(self, first: int, count: int) -> Portion:
        """What yields so many files from an index on in any process that sees the source."""
        files = self._files
        if isinstance(files, Folder):  # names are listed once, and handed out
            return partial(_seen, self.place, list(self.read(first, count)))
        if isinstance(files, ParquetFile | ParquetFiles):
            return partial(_rows, files.rows(first, count))
        return partial(_read_again, self.place, self.fingerprint, first, count)


def open_pictures(place: Path | str, setting: str) -> Source:
    """Opens a folder, a zip or tar archive, a Parquet file, or a folder of such; `setting` named the place.

    A place is a path, or an address such as s3://BUCKET/FOLDER. Raises NoPictures where there is nothing, UserError
    where it is none of these, is damaged or refused, and RegistryError where a storage does not answer.
    """
    name = str(place) if is_address(place) else os.path.abspath(place)
    try:
        files = _files(name, setting)
    except (*DAMAGE, pa.ArrowException) as error:
        raise UserError(f"{setting}={place} can't be read, or is damaged:\n{error}") from error
    if not len(files):
        raise NoPictures(f"{setting}={place}: there is no file in it")
    return Source(name, files)


def _files(place: str, setting: str) -> Files:
    storage, path = located(place)
    if storage.is_file(path):
        with storage.open(path) as file:
            is_parquet = file.read(len(PARQUET)) == PARQUET
        if is_parquet:
            return ParquetFile(path, setting, storage)
        if is_address(place):
            raise UserError(f"{setting}={place} is no Parquet file\nAt an address give a folder, or Parquet files.")
    files = Folder(storage.entries(path), storage.read) if is_address(place) else open_files(Path(path), setting)
    if isinstance(files, Folder) and (shards := files.ending(".parquet")):
        if others := len(files) - len(shards):
            log.warning("%s=%s: its Parquet files alone are read, not %d other files", setting, place, others)
        return ParquetFiles(shards, setting, storage, files.fingerprint)
    return files


def _seen(place: str, files: list[File]) -> Iterator[File]:
    """The files, where this process sees their folder: else each row would say that its file is missing."""
    if not is_address(place) and not os.path.isdir(place):
        raise not_seen(f"source={place}")
    return iter(files)


def _rows(rows: list[Rows]) -> Iterator[File]:
    return chain.from_iterable(each.read() for each in rows)


def _read_again(place: str, fingerprint: str, first: int, count: int) -> Iterator[File]:
    """An archive's files, of which each process reads the list itself."""
    try:
        source = _opened(place, fingerprint)
    except NoPictures as error:
        raise not_seen(f"source={place}") from error
    if source.fingerprint != fingerprint:
        raise not_seen(f"source={place}")
    return source.read(first, count)


@cache
def _opened(place: str, fingerprint: str) -> Source:  # of another fingerprint it is another one
    return open_pictures(place, "source")
