"""Addresses such as s3://BUCKET/FOLDER, by pyarrow's file systems and, where it has none, by fsspec's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import fs

from serving.model.errors import RegistryError, UserError, without_credentials
from serving.model.pictures.listing import Entry, Folder


def is_address(place: Path | str) -> bool:
    return "://" in str(place)


@cache
def located(place: str) -> tuple[fs.FileSystem, str]:
    """A file system, and the path in it that an address or a local path names; UserError for an unknown scheme."""
    if not is_address(place):
        return fs.LocalFileSystem(), os.path.abspath(place)
    scheme, _, path = place.partition("://")
    try:
        if scheme == "s3" and (endpoint := os.environ.get("MLFLOW_S3_ENDPOINT_URL")):
            return fs.S3FileSystem(endpoint_override=endpoint, region=os.environ.get("AWS_DEFAULT_REGION")), path
        try:
            return fs.FileSystem.from_uri(place)
        except pa.ArrowInvalid:  # none of pyarrow's
            found, path = fsspec.core.url_to_fs(place)
            return fs.PyFileSystem(fs.FSSpecHandler(found)), path
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{place} can't be opened: {error}\nGive a path, or an address such as s3://BUCKET/..."
        ) from error
    except OSError as error:
        raise _named(place, error) from error


@contextmanager
def answering(place: str) -> Iterator[None]:
    """What a storage fails with is a RegistryError, and so tried again; of what is missing a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_address(place):
            raise
        raise _named(place, error) from error


def _named(place: str, error: Exception) -> RegistryError:
    reason = without_credentials(str(error)).splitlines()[0]
    return RegistryError(f"{place} can't be reached: its storage does not answer ({reason})")


def read(place: str) -> bytes:
    """A file's bytes; FileNotFoundError or RegistryError."""
    filesystem, path = located(place)
    with answering(place), filesystem.open_input_stream(path) as file:
        return bytes(file.read())


def folder(place: str) -> Folder:
    """The files under an address."""
    with answering(place):
        return Folder(_entries(place), read)


def _entries(place: str) -> Iterator[Entry]:
    filesystem, root = located(place.rstrip("/"))
    start = f"{place.rstrip('/')}/"
    if filesystem.type_name == "s3":
        for key, stamp in _keys(*root.partition("/")[::2]):
            yield Entry(key, start + key, stamp)
        return
    for found in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True)):
        if found.type == fs.FileType.File:
            name = found.path[len(root) :].lstrip("/")
            yield Entry(name, start + name, f"{found.size} {found.mtime_ns}")


def _keys(bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """The names under a prefix, and size and hash of each: pyarrow would hold all of a bucket at a time."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client: Any = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
    prefix = prefix and f"{prefix}/"
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield entry["Key"].removeprefix(prefix), f"{entry['Size']} {entry['ETag']}"
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            raise UserError(f"s3://{bucket} does not exist; give the address of a bucket that does") from error
        raise _named(f"s3://{bucket}", error) from error
    except BotoCoreError as error:
        raise _named(f"s3://{bucket}", error) from error
