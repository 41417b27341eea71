"""Pictures decoded once, into files that are mapped into memory."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.model.errors import PictureError, UserError
from serving.model.pictures.decoding import Decoding, decode
from training.data.layouts import SPLITS, TEST, TRAIN, alike
from training.data.pictures import Pictures
from training.data.sources import Item, LeftOut, Source
from training.progress import progress

log = logging.getLogger(__name__)

# Part of the cache's key: raise it when the cache's layout changes.
VERSION = 4
LEFT_OUT_FILE = "left_out.json"
KINDS = {
    "unreadable": "can't be read",
    "not_a_picture": "not a picture",
    "broken_picture": "broken",
    "too_many_pixels": "too many pixels",
}


class Cached(NamedTuple):
    """A source's SHA-256, its classes in alphabetical order, the pictures of each split, and what is left out."""

    fingerprint: str
    classes: list[str]
    splits: dict[str, Pictures]
    left_out: list[LeftOut]


class Cache:
    """Keeps decoded pictures under `directory`, each data set in a folder named by its content and its decoding.

    A file that is no picture is left out, and said; one that can't be decoded too, where `broken` is `skip`.
    """

    def __init__(self, directory: Path, broken: str, decoding: Decoding) -> None:
        self._directory = directory
        self._broken = broken
        self._decoding = decoding

    def load(self, source: Source, for_training: bool = True) -> Cached:
        """Decodes the pictures of a source, unless they are in the cache; calls it once then, else twice.

        Raises UserError where a picture is broken and they are refused, or a class has none that can be decoded; for
        training also where there is no training picture, or just one class.
        """
        fingerprint, classes, names = _fingerprint(progress(source(), "reading"))
        decoded = f"{self._decoding.shorter_side or 'full'}{'' if self._decoding.as_shown else '-contract-0'}"
        # The names count as well: they are what people find a picture by.
        entry = self._directory / f"v{VERSION}-{self._broken}-{decoded}-{fingerprint[:16]}-{names[:8]}"
        if not entry.exists():
            self._write(entry, source, classes)
        with suppress(OSError):  # as where it is read-only
            os.utime(entry)  # when it was last used: release/retention.py frees what was not for long
        left_out = [LeftOut(*entry) for entry in json.loads((entry / LEFT_OUT_FILE).read_text())]
        splits = {split: _read(entry / split) for split in SPLITS}
        _check(splits, classes, left_out, for_training)
        return Cached(fingerprint, classes, splits, left_out)

    def _write(self, entry: Path, source: Source, classes: list[str]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as parent:
            partial = Path(parent) / "entry"
            broken = _write(partial, source(), classes, self._decoding)
            if broken and self._broken == "refuse":
                more = f", and {len(broken) - 5} more" if len(broken) > 5 else ""
                named = "; ".join(f"{name}: {reason}" for name, reason in broken[:5])
                message = f"{len(broken)} of the pictures can't be used: {named}{more}."
                raise UserError(f"{message}\nFix them, or leave them out with data.broken=skip.")
            try:
                partial.rename(entry)
            except OSError:
                if not entry.exists():  # else another process was as quick
                    raise


def _check(splits: dict[str, Pictures], classes: list[str], left_out: list[LeftOut], for_training: bool) -> None:
    first = next((entry for entry in left_out if entry.kind != "hidden"), None)
    why = f"\n{len(left_out)} files are left out: {first.name} ({first.kind}), for one" if first else ""
    if for_training and len(classes) < 2:
        raise UserError(f"there is only one class ({', '.join(classes)}); at least two are needed")
    if for_training and not len(splits[TRAIN]):
        raise UserError(f"there are no training pictures, in train/<class>/ or in <class>/{why}")
    for split, pictures in splits.items():
        absent = sorted({*range(len(classes))} - {*np.unique(pictures.labels)})
        if absent and len(pictures) and split in (TRAIN, TEST) and for_training:
            place = f"{split}/{classes[absent[0]]}"
            raise UserError(f"no picture of {place}/ can be used; add some, or remove the class{why}")
    if hardly := alike(classes):
        log.warning("classes that look the same: %s", ", ".join(map(repr, hardly)))


def _fingerprint(items: Iterable[Item | LeftOut]) -> tuple[str, list[str], str]:
    """The SHA-256 of all contents, the classes, and the SHA-256 of all names."""
    digest, names = hashlib.sha256(), hashlib.sha256()
    classes = set()
    for item in items:
        names.update(f"{item.name}\n".encode())
        if isinstance(item, LeftOut):
            continue
        # Where the folder or archive lies does not count, nor how its pictures are called.
        digest.update(f"{item.split}/{item.label}/".encode())
        digest.update(_content_hash(item)[1])
        classes.add(item.label)
    return digest.hexdigest(), sorted(classes), names.hexdigest()


def _content_hash(item: Item) -> tuple[bytes | np.ndarray | PictureError, bytes]:
    """What an item holds, and its SHA-256."""
    try:
        content = item.read()
    except PictureError as error:
        return error, hashlib.sha256(error.code.encode()).digest()
    return content, hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest()


def _write(
    directory: Path, items: Iterable[Item | LeftOut], classes: list[str], decoding: Decoding
) -> list[tuple[str, str]]:
    """Decodes the pictures into `directory`; returns those that can't be, with their reasons."""
    columns: dict[str, tuple[list[tuple[int, ...]], list[int], list[str], list[bytes]]] = {
        split: ([], [], [], []) for split in SPLITS
    }
    left_out: list[LeftOut] = []
    broken: list[tuple[str, str]] = []
    with ExitStack() as stack:
        files = {}
        for split in SPLITS:
            (directory / split).mkdir(parents=True)
            files[split] = stack.enter_context(open(directory / split / "pixels.bin", "wb"))
        for item in progress(items, "decoding"):
            if isinstance(item, LeftOut):
                left_out.append(item)
                continue
            content, sha256 = _content_hash(item)
            try:
                if isinstance(content, PictureError):
                    raise content
                pixels = decode(content, decoding) if isinstance(content, bytes) else content
            except PictureError as error:
                left_out.append(LeftOut(item.name, KINDS[error.code], error.message))
                if error.code != "not_a_picture":
                    broken.append((item.name, error.message.rstrip(".")))
                continue
            files[item.split].write(np.ascontiguousarray(pixels).data)
            sizes, labels, names, hashes = columns[item.split]
            sizes.append(pixels.shape[:2])
            labels.append(classes.index(item.label))
            names.append(item.name)
            hashes.append(sha256[:8])
    for split, (sizes, labels, names, hashes) in columns.items():
        np.save(directory / split / "sizes.npy", np.array(sizes, np.int32))
        np.save(directory / split / "labels.npy", np.array(labels, np.int64))
        np.save(directory / split / "hashes.npy", np.frombuffer(b"".join(hashes), np.uint64))
        (directory / split / "names.json").write_text(json.dumps(names))
    (directory / LEFT_OUT_FILE).write_text(json.dumps(left_out))
    return broken


def _read(directory: Path) -> Pictures:
    sizes = np.load(directory / "sizes.npy").reshape(-1, 2)
    lengths = sizes.astype(np.int64).prod(axis=1) * 3
    return Pictures(
        # An empty file can't be mapped.
        pixels=np.memmap(directory / "pixels.bin", np.uint8, "r") if len(sizes) else np.empty(0, np.uint8),
        offsets=np.cumsum(lengths) - lengths,
        sizes=sizes,
        labels=np.load(directory / "labels.npy"),
        names=np.array(json.loads((directory / "names.json").read_text())),
        hashes=np.load(directory / "hashes.npy"),
    )
