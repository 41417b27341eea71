"""Where pictures come from: a folder or an archive of class folders, CIFAR-10 itself, or scikit-learn's digits."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from serving.model.errors import UserError
from serving.model.pictures.decoding import is_picture
from serving.model.pictures.files import open_files

SPLITS = ("train", "test")
SECONDS_WITHOUT_DATA = 30  # then a download is given up


class Item(NamedTuple):
    """One picture: its split, its class, a name for people, and what gives its image file's bytes or its pixels.

    `read` returns bytes or uint8 (H, W, 3); it raises a PictureError where the file can't be read.
    """

    split: str
    label: str
    name: str
    read: Callable[[], bytes | np.ndarray]


# Gives the pictures anew, in the same order, at each call.
Source = Callable[[], Iterator[Item]]


def folder(root: str) -> Iterator[Item]:
    """Reads `train/<class>/*` and `test/<class>/*` from a folder, or from a zip or tar archive of one.

    Raises UserError where `root` is none of these or damaged, or a class has no picture in one of the splits.
    """
    files = open_files(Path(root).expanduser(), "data.root")
    # A class is known by its folder, so that one without pictures is noticed.
    counts = {place: 0 for name in files.folders if (place := _place(f"{name}/any file"))}
    for file in files.read_from(0):
        if place := _place(file.name):
            counts.setdefault(place, 0)
            if is_picture(file.name):
                counts[place] += 1
                yield Item(*place, file.name, file.read)
    _check_classes(root, counts)


def _place(name: str) -> tuple[str, str] | None:
    """The split and the class of a file at `.../<split>/<class>/<file>`."""
    *_, split, label, _ = ("", "", *PurePosixPath(name).parts)
    return (split, label) if split in SPLITS else None


def _check_classes(root: str, counts: dict[tuple[str, str], int]) -> None:
    for split in SPLITS:
        if not any(counts[place] for place in counts if place[0] == split):
            raise UserError(f"data.root={root}: no pictures under {split}/<class>/; both train/ and test/ need some")
    labels = sorted({label for _, label in counts})
    if len(labels) < 2:
        raise UserError(f"data.root={root}: there is only one class ({labels[0]}); at least two are needed")
    for label in labels:
        for split in SPLITS:
            if not counts.get((split, label)):
                raise UserError(f"data.root={root}: no pictures in {split}/{label}/; add some or remove the class")


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
            yield _decoded(split, dataset.classes[target], index, pixels)


def digits() -> Iterator[Item]:
    """scikit-learn's embedded 8x8 handwritten digits: every fifth is a test picture."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for index, (picture, target) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        grey = (picture * 255 / 16).round().astype(np.uint8)
        yield _decoded("test" if index % 5 == 0 else "train", str(target), index, np.repeat(grey[..., None], 3, axis=2))


def _decoded(split: str, label: str, index: int, pixels: np.ndarray) -> Item:
    return Item(split, label, f"{split}/{label}/{index:05d}", lambda: pixels)
