"""Where the pictures of a batch come from, and portions of them that other processes read as well."""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileSystem, FileType

from serving.batch import storage
from serving.model.errors import NoPictures, UserError
from serving.model.pictures.files import DAMAGE, PARQUET, File, Files, open_files
from serving.model.pictures.listing import Folder, local_folder
from serving.model.pictures.parquet import ParquetFile, ParquetFiles

Portion = Callable[[], Iterator[File]]
NOT_SEEN = f"is not there on the node {os.uname().nodename}\nGive a place that every node sees, such as s3://BUCKET/..."


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
        """Yields the files from an index on."""
        with storage.answering(self.place):
            yield from self._files.read_from(start)

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
        if isinstance(self._files, Folder):  # whose names need not be listed again
            return partial(_seen, self.place, list(self.read(first, count)))
        return partial(_read_again, self.place, self.fingerprint, first, count)


def open_pictures(place: Path | str, setting: str) -> Source:
    """Opens a folder, a zip or tar archive, a Parquet file, or a folder of such; `setting` named the place.

    A place is a path, or an address such as s3://BUCKET/FOLDER. Raises NoPictures where there is nothing, UserError
    where it is none of these, or is damaged, and RegistryError where a storage does not answer.
    """
    name = str(place) if storage.is_address(place) else os.path.abspath(place)
    try:
        with storage.answering(name):
            files = _files(name, setting)
    except (*DAMAGE, pa.ArrowException) as error:
        raise UserError(f"{setting}={place} can't be read, or is damaged:\n{error}") from error
    if not len(files):
        raise NoPictures(f"{setting}={place}: there is no file in it")
    return Source(name, files)


def _files(place: str, setting: str) -> Files:
    filesystem, path = storage.located(place)
    kind = filesystem.get_file_info(path).type
    if kind == FileType.File and _is_parquet(filesystem, path):
        return ParquetFile(Path(path), setting, filesystem)
    if kind != FileType.Directory and not storage.is_address(place):
        return open_files(Path(place), setting)
    if kind == FileType.File:
        raise UserError(f"{setting}={place} is no Parquet file\nAt an address give a folder, or Parquet files.")
    folder = storage.folder(place) if storage.is_address(place) else local_folder(Path(place))
    if folder.only(".parquet"):
        paths = [(name, storage.located(place)[1]) for name, place in folder.places()]
        return ParquetFiles(paths, setting, filesystem, folder.fingerprint)
    return folder


def _is_parquet(filesystem: FileSystem, path: str) -> bool:
    with filesystem.open_input_stream(path) as file:
        return bool(file.read(len(PARQUET)) == PARQUET)


def _seen(place: str, files: list[File]) -> Iterator[File]:
    """The files, where this process sees their folder: else each row would say that its file is missing."""
    if not storage.is_address(place) and not os.path.isdir(place):
        raise UserError(f"source={place} {NOT_SEEN}")
    return iter(files)


def _read_again(place: str, fingerprint: str, first: int, count: int) -> Iterator[File]:
    try:
        source = _opened(place)
    except NoPictures as error:
        raise UserError(f"source={place} {NOT_SEEN}") from error
    if source.fingerprint != fingerprint:
        raise UserError(f"source={place} {NOT_SEEN}")
    return source.read(first, count)


@cache
def _opened(place: str) -> Source:
    return open_pictures(place, "source")
