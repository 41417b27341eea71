"""Where sources and targets lie: at local paths, or at addresses such as s3://BUCKET/FOLDER."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import fsspec

from serving.batch.addresses import S3, Other
from serving.model.errors import UserError
from serving.model.pictures import storage as pictures
from serving.model.pictures.storage import Local


class Storage(pictures.Storage, Protocol):
    """A storage that can be written as well."""

    def is_file(self, path: str) -> bool: ...

    def is_folder(self, path: str) -> bool: ...

    def write(self, path: str, write: Callable[[IO[bytes]], None]) -> None:
        """Makes a file of what `write` writes: it is there whole or not at all, also after a kill."""

    def remove(self, path: str) -> None:
        """Removes a file, or a folder with what is in it, if there is one."""


def is_address(place: Path | str) -> bool:
    return "://" in str(place)


def located(place: str) -> tuple[Storage, str]:
    """A storage, and the path in it that an address or a local path names; UserError for one that can't be."""
    if not is_address(place):
        return Here(), os.path.abspath(place)
    scheme, _, path = place.partition("://")
    if not path.strip("/"):
        raise UserError(f"{place} names no place\nGive one, such as {scheme}://BUCKET/FOLDER.")
    if scheme == "s3":
        bucket, _, key = path.partition("/")
        return S3(bucket), key
    try:
        filesystem, path = fsspec.core.url_to_fs(place, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{place} can't be opened: {error}\nGive a path, or an address: s3://BUCKET/...") from error
    return Other(filesystem), path


class Here(Local):
    """The files of this machine."""

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def write(self, path: str, write: Callable[[IO[bytes]], None]) -> None:
        """Also after a power cut."""
        beside = f"{path}.partial"
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)

    def remove(self, path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)
