"""Where pictures come from: a folder or an archive of class folders, CIFAR-10 itself, or scikit-learn's digits."""

import gzip
import lzma
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from training.errors import UserError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
SPLITS = ("train", "test")
SECONDS_WITHOUT_DATA = 30  # then a download is given up


class Item(NamedTuple):
    """One picture: its split, its class, a name for people, and an image file's bytes or uint8 (H, W, 3) pixels."""

    split: str
    label: str
    name: str
    content: bytes | np.ndarray


def folder(root: str) -> Iterator[Item]:
    """Reads `train/<class>/*` and `test/<class>/*` from a directory, or from a zip or tar archive of one."""
    path = Path(root).expanduser()
    if not root or not path.exists():
        raise UserError(f"data.root={root!r} does not exist; give a folder or an archive with train/ and test/ in it")
    if path.is_dir():
        files = _directory(path)
    elif zipfile.is_zipfile(path):
        files = _zip(path)
    elif tarfile.is_tarfile(path):
        files = _tar(path)
    else:
        raise UserError(f"data.root={root}: not a folder, nor a zip or tar archive")

    # A class is known by its folder, so that one without pictures is noticed.
    counts: dict[tuple[str, str], int] = {}
    for name, content in files:
        parts = PurePosixPath(name).parts
        is_folder = content is None
        # A folder may lie above train/ and test/, as archives often have one.
        depth = len(parts) - 2 if is_folder else len(parts) - 3
        if depth < 0 or parts[depth] not in SPLITS or _is_hidden(parts):
            continue
        split, label = parts[depth], parts[depth + 1]
        counts.setdefault((split, label), 0)
        if content is not None and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            counts[split, label] += 1
            yield Item(split, label, name, content)
    _check_classes(root, counts)


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def _check_classes(root: str, counts: dict[tuple[str, str], int]) -> None:
    for split in SPLITS:
        if not any(counts[key] for key in counts if key[0] == split):
            raise UserError(f"data.root={root}: no pictures under {split}/<class>/; both train/ and test/ need some")
    labels = sorted({label for _, label in counts})
    if len(labels) < 2:
        raise UserError(f"data.root={root}: there is only one class ({labels[0]}); at least two are needed")
    for label in labels:
        for split in SPLITS:
            if not counts.get((split, label)):
                raise UserError(f"data.root={root}: no pictures in {split}/{label}/; add some or remove the class")


def _directory(root: Path) -> Iterator[tuple[str, bytes | None]]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            yield name, None
        elif path.is_file():
            yield name, path.read_bytes()


def _zip(path: Path) -> Iterator[tuple[str, bytes | None]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                yield info.filename, None if info.is_dir() else archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"data.root={path}: the archive is damaged or locked ({error})") from error


def _tar(path: Path) -> Iterator[tuple[str, bytes | None]]:
    try:
        with tarfile.open(path) as archive:
            for info in archive:
                if info.isdir():
                    yield info.name, None
                elif (file := archive.extractfile(info)) is not None:
                    yield info.name, file.read()
    except (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise UserError(f"data.root={path}: the archive is damaged ({error})") from error


def cifar10(root: str) -> Iterator[Item]:
    """Downloads CIFAR-10 into `root` once, verified by torchvision against its known checksums."""
    from torchvision.datasets import CIFAR10

    for split in SPLITS:
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(SECONDS_WITHOUT_DATA)  # torchvision itself would wait for ever
        try:
            dataset = CIFAR10(root, train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 can't be downloaded ({error}).\n"
                "Give your own pictures (data=folder data.root=PATH) or choose the stand-in (data=digits)."
            ) from error
        finally:
            socket.setdefaulttimeout(patience)
        for index, (pixels, target) in enumerate(zip(dataset.data, dataset.targets, strict=True)):
            label = dataset.classes[target]
            yield Item(split, label, f"{split}/{label}/{index:05d}", pixels)


def digits() -> Iterator[Item]:
    """scikit-learn's embedded 8x8 handwritten digits: every fifth is a test picture."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for index, (picture, target) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        split = "test" if index % 5 == 0 else "train"
        grey = (picture * 255 / 16).round().astype(np.uint8)
        yield Item(split, str(target), f"{split}/{target}/{index:04d}", np.repeat(grey[..., None], 3, axis=2))
