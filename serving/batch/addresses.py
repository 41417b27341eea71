"""What lies at addresses: S3's objects by boto3, and other files by fsspec."""

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, BinaryIO

import boto3
import fsspec
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)

from serving.model.errors import RegistryError, UserError, without_credentials
from serving.model.pictures.files import tidy
from serving.model.pictures.storage import Entry

TO_MEND = (
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ValueError,
)
TIMED_OUT, TOO_MANY = 408, 429
TRIES = 3  # of an object whose body breaks off, which boto3 leaves to us
BROKEN_OFF = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
SECONDS_TO_CONNECT = 10
CONNECTIONS = 64  # more threads wait for each other; one that is idle costs nothing
# What changes when a file does, by the names that fsspec's file systems have for it.
STAMPS = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class S3:
    """The objects of a bucket by their keys. Its client tries again what fails, a few times within seconds."""

    bucket: str

    def address(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"

    def read(self, path: str) -> bytes:
        return self._read(path)

    def open(self, path: str) -> BinaryIO:
        size = self._found(path)["Size"]
        return Ranges(size, lambda start, end: self._read(path, Range=f"bytes={start}-{end - 1}"))  # type: ignore[return-value]

    def stamp(self, path: str) -> str:
        return _stamp_of_object(self._found(path))

    def entries(self, folder: str) -> Iterator[Entry]:
        prefix = folder and f"{folder.rstrip('/')}/"
        with self._answering(folder):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    if not found["Key"].endswith("/"):
                        yield Entry(found["Key"].removeprefix(prefix), found["Key"], _stamp_of_object(found))

    def is_file(self, path: str) -> bool:
        return bool(path) and any(found["Key"] == path for found in self._first(path))

    def is_folder(self, path: str) -> bool:
        return not path or path.endswith("/") or bool(self._first(f"{path}/"))

    def write(self, path: str, write: Callable[[IO[bytes]], None]) -> None:
        with tempfile.TemporaryFile() as whole:
            write(whole)
            whole.seek(0)
            with self._answering(path):  # one request, or a multipart upload that is completed or aborted
                self._client.upload_fileobj(whole, self.bucket, path)

    def remove(self, path: str) -> None:
        with self._answering(path):
            for key in [path, *(entry.path for entry in self.entries(path))]:
                self._client.delete_object(Bucket=self.bucket, Key=key)

    def _first(self, prefix: str) -> list[Any]:
        with self._answering(prefix):
            found: list[Any] = self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1).get(
                "Contents", []
            )
            return found

    def _found(self, path: str) -> Any:
        for found in self._first(path):  # names are in order, and none that begins so is before it
            if found["Key"] == path:
                return found
        raise FileNotFoundError(f"there is no {self.address(path)}")

    def _read(self, path: str, **options: str) -> bytes:
        with self._answering(path):
            for left in reversed(range(TRIES)):
                found = self._client.get_object(Bucket=self.bucket, Key=path, **options)
                try:
                    content: bytes = found["Body"].read()
                    break
                except BROKEN_OFF:
                    if not left:
                        raise
        return content

    @property
    def _client(self) -> Any:
        return _client(os.environ.get("MLFLOW_S3_ENDPOINT_URL"))

    @contextmanager
    def _answering(self, path: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"there is no {self.address(path)}") from error
            if code == "NoSuchBucket":
                raise UserError(
                    f"s3://{self.bucket} does not exist\nGive the address of a bucket that does."
                ) from error
            for_now = status in (TIMED_OUT, TOO_MANY) or code == "RequestTimeout" or "Throttl" in code
            if 400 <= status < 500 and not for_now:
                raise self._refused(path, error) from error
            raise _no_answer(self.address(path), error) from error
        except TO_MEND as error:
            raise self._refused(path, error) from error
        except BotoCoreError as error:
            raise _no_answer(self.address(path), error) from error

    def _refused(self, path: str, error: Exception) -> UserError:
        return UserError(
            f"{self.address(path)} is refused ({_reason(error)})\n"
            "Mend it, or the AWS_ variables: the credentials, the region, or what they may do there."
        )


@dataclass(frozen=True)
class Other:
    """The files of one of fsspec's file systems by its own paths."""

    filesystem: fsspec.AbstractFileSystem

    def address(self, path: str) -> str:
        return str(self.filesystem.unstrip_protocol(path))

    def read(self, path: str) -> bytes:
        with self._answering(path):
            return bytes(self.filesystem.cat_file(path))

    def open(self, path: str) -> BinaryIO:
        def read(start: int, end: int) -> bytes:
            with self._answering(path):
                return bytes(self.filesystem.cat_file(path, start, end))

        return Ranges(self._info(path)["size"], read)  # type: ignore[return-value]

    def stamp(self, path: str) -> str:
        return _stamp_of_info(self._info(path))

    def entries(self, folder: str) -> Iterator[Entry]:
        with self._answering(folder):
            if not self.is_folder(folder):
                return
            start = len(folder.rstrip("/")) + 1
            for _, _, files in self.filesystem.walk(folder, detail=True, on_error="raise"):
                for info in files.values():
                    yield Entry(tidy(info["name"][start:]), info["name"], _stamp_of_info(info))

    def is_file(self, path: str) -> bool:
        return self._type(path) == "file"

    def is_folder(self, path: str) -> bool:
        return self._type(path) == "directory"

    def write(self, path: str, write: Callable[[IO[bytes]], None]) -> None:
        beside = f"{path}.partial"  # an upload that fails may leave a part
        with tempfile.NamedTemporaryFile() as whole:
            write(whole)
            whole.flush()
            with self._answering(path):
                self.filesystem.makedirs(os.path.dirname(path), exist_ok=True)
                self.filesystem.put_file(whole.name, beside)
                self._move(beside, path)

    def remove(self, path: str) -> None:
        with self._answering(path):
            for entry in self.entries(path):
                self.filesystem.rm_file(entry.path)
            if found := self._type(path):
                (self.filesystem.rm_file if found == "file" else self.filesystem.rmdir)(path)

    def _move(self, path: str, to: str) -> None:
        if type(self.filesystem).mv is fsspec.AbstractFileSystem.mv:  # it takes names for patterns, as rm does
            self.filesystem.cp_file(path, to)
            self.filesystem.rm_file(path)
        else:
            self.filesystem.mv(path, to)

    def _info(self, path: str) -> Any:
        with self._answering(path):
            return self.filesystem.info(path)

    def _type(self, path: str) -> str | None:
        try:
            return str(self._info(path)["type"])
        except FileNotFoundError:
            return None

    @contextmanager
    def _answering(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, MemoryError, UserError, RegistryError):
            raise
        except PermissionError as error:
            raise UserError(f"{self.address(path)} is refused: {_reason(error)}\nMend the permissions.") from error
        except Exception as error:  # of whichever library
            raise _no_answer(self.address(path), error) from error


class Ranges(io.RawIOBase):
    """A file that is read by `read`, from a byte on and up to another."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._read = read
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        content = self._read(self._position, end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


@cache
def _client(endpoint: str | None) -> Any:
    """One for all threads and buckets: each has connections of its own."""
    config = Config(max_pool_connections=CONNECTIONS, connect_timeout=SECONDS_TO_CONNECT)
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def _stamp_of_object(found: Any) -> str:
    return f"{found['Size']} {found['ETag']}"


def _stamp_of_info(info: Any) -> str:
    return f"{info['size']} {next((info[name] for name in STAMPS if info.get(name)), '')}"


def _no_answer(place: str, error: Exception) -> RegistryError:
    return RegistryError(f"{place} can't be reached: its storage does not answer ({_reason(error)})")


def _reason(error: Exception) -> str:
    return (without_credentials(str(error)).strip() or type(error).__name__).splitlines()[-1]
