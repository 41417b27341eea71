"""Pictures decoded once, into files that are mapped into memory."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.model.errors import PictureError, UserError
from serving.model.pictures.decoding import decode
from training.data.pictures import Pictures
from training.data.sources import SPLITS, Item, Source
from training.progress import progress

log = logging.getLogger(__name__)

# Part of the cache's key: raise it when the cache's layout changes.
VERSION = 3
BROKEN_FILE = "broken.json"


class Cached(NamedTuple):
    """A source's SHA-256, its classes in alphabetical order, and the pictures of each split."""

    fingerprint: str
    classes: list[str]
    splits: dict[str, Pictures]


class Cache:
    """Keeps decoded pictures under `directory`, each data set in a folder named by its fingerprint.

    Those that can't be decoded are named and counted, whether `broken` is `refuse` or `skip`.
    """

    def __init__(self, directory: Path, broken: str) -> None:
        self._directory = directory
        self._broken = broken

    def load(self, source: Source) -> Cached:
        """Decodes the pictures of a source, unless they are in the cache; calls it once then, else twice.

        Raises UserError where a picture is broken and they are refused, or a class has none that can be decoded.
        """
        fingerprint, classes = _fingerprint(progress(source(), "reading"))
        entry = self._directory / f"v{VERSION}-{self._broken}-{fingerprint[:16]}"
        if not entry.exists():
            self._write(entry, source, classes)
        if broken := json.loads((entry / BROKEN_FILE).read_text()):
            log.warning("left out: %s", _named(broken))
        splits = {split: _read(entry / split) for split in SPLITS}
        for split, pictures in splits.items():
            if absent := sorted({*range(len(classes))} - {*np.unique(pictures.labels)}):
                place = f"{split}/{classes[absent[0]]}"
                raise UserError(f"none of the pictures in {place}/ can be decoded; add some, or remove the class")
        return Cached(fingerprint, classes, splits)

    def _write(self, entry: Path, source: Source, classes: list[str]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as parent:
            partial = Path(parent) / "entry"
            broken = _write(partial, source(), classes)
            if broken and self._broken == "refuse":
                raise UserError(f"{_named(broken)}.\nMend them, or leave them out with data.broken=skip.")
            try:
                partial.rename(entry)
            except OSError:
                if not entry.exists():  # else another process was as quick
                    raise


def _named(broken: list[str]) -> str:
    more = ", ..." if len(broken) > 5 else ""
    return f"{len(broken)} of the pictures can't be decoded: {', '.join(broken[:5])}{more}"


def _fingerprint(items: Iterable[Item]) -> tuple[str, list[str]]:
    digest = hashlib.sha256()
    classes = set()
    for item in items:
        try:
            content = item.read()
        except PictureError as error:
            content = error.message.encode()
        # Where the folder or archive lies does not count, nor how its pictures are called.
        digest.update(f"{item.split}/{item.label}/".encode())
        digest.update(hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest())
        classes.add(item.label)
    return digest.hexdigest(), sorted(classes)


def _write(directory: Path, items: Iterable[Item], classes: list[str]) -> list[str]:
    """Decodes the pictures into `directory`; returns the names of those that can't be, with their reasons."""
    columns: dict[str, tuple[list[tuple[int, ...]], list[int], list[str]]] = {split: ([], [], []) for split in SPLITS}
    broken: list[str] = []
    with ExitStack() as stack:
        files = {}
        for split in SPLITS:
            (directory / split).mkdir(parents=True)
            files[split] = stack.enter_context(open(directory / split / "pixels.bin", "wb"))
        for item in progress(items, "decoding"):
            try:
                content = item.read()
                pixels = decode(content) if isinstance(content, bytes) else content
            except PictureError as error:
                broken.append(f"{item.name} ({error.message.rstrip('.')})")
                continue
            files[item.split].write(np.ascontiguousarray(pixels).data)
            sizes, labels, names = columns[item.split]
            sizes.append(pixels.shape[:2])
            labels.append(classes.index(item.label))
            names.append(item.name)
    for split, (sizes, labels, names) in columns.items():
        np.save(directory / split / "sizes.npy", np.array(sizes, np.int32))
        np.save(directory / split / "labels.npy", np.array(labels, np.int64))
        (directory / split / "names.json").write_text(json.dumps(names))
    (directory / BROKEN_FILE).write_text(json.dumps(broken))
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
    )
