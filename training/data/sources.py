"""Where pictures come from: people's own files, CIFAR-10 itself, or scikit-learn's digits."""

import csv
import os
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.model.errors import UserError, full_disk
from serving.model.pictures.files import Files, guarded, is_parquet
from serving.model.pictures.listing import open_files
from training.data.layouts import SPLIT_NAMES, SPLITS, TEST, TRAIN, Place, class_name, layout_of

SECONDS_WITHOUT_DATA = 30  # then a download is given up


class Item(NamedTuple):
    """One picture: its split, its class, a name for people, and what gives its image file's bytes or its pixels.

    `read` returns bytes or uint8 (H, W, 3); it raises a PictureError where the file can't be read.
    """

    split: str
    label: str
    name: str
    read: Callable[[], bytes | np.ndarray]


class LeftOut(NamedTuple):
    """A file that is no picture of a class, and why: a kind that many may share, and details of this one."""

    name: str
    kind: str
    detail: str = ""


# Gives the pictures anew, in the same order, at each call.
Source = Callable[[], Iterator[Item | LeftOut]]


def folder(root: str) -> Iterator[Item | LeftOut]:
    """Reads folders of classes, in a folder or an archive, a CSV file of paths and labels, or Parquet files.

    Raises UserError where `root` is none of these or damaged, or a class has no file.
    """
    path = Path(os.path.expanduser(root))
    if path.suffix.lower() == ".csv" and path.is_file():
        yield from _csv(path)
    elif shards := _parquet_files(path):
        yield from _parquet(path, shards)
    else:
        yield from _folders(root, open_files(path, "data.root"))


def _folders(root: str, files: Files) -> Iterator[Item | LeftOut]:
    layout = layout_of(files.names, files.folders, root)
    for split, label in sorted(
        layout.classes - {place for place in layout.places.values() if isinstance(place, Place)}
    ):
        raise UserError(f"data.root={root}: no pictures in {split}/{label}/; add some or remove the class")
    for file in files.read_from(0):
        place = layout.places[file.name]
        yield Item(*place, file.name, file.read) if isinstance(place, Place) else LeftOut(file.name, place)
    if files.hidden:
        yield LeftOut(f"({files.hidden} files or folders)", "hidden")


def _csv(path: Path) -> Iterator[Item]:
    """A row a picture: its path, from the file's folder on, its label, and perhaps its split."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        sample = file.read(2**16)
        file.seek(0)
        separator = max(",;\t", key=sample.partition("\n")[0].count)
        rows = csv.DictReader(file, delimiter=separator)
        names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
        columns = [
            next((names[name] for name in choices if name in names), None)
            for choices in (("path", "file", "filename", "file_name", "image"), ("label", "class"), ("split",))
        ]
        if not columns[0] or not columns[1]:
            found = ", ".join(map(str, rows.fieldnames or ())) or "none"
            raise UserError(f"data.root={path} has the columns {found};\nit needs one named path and one named label")
        for number, row in enumerate(rows, 2):
            name, label, split = (str(row.get(column) or "").strip() if column else "" for column in columns)
            if not name or not label:
                raise UserError(f"data.root={path}, line {number}: there is no {'label' if name else 'path'}")
            if (split or TRAIN).casefold() not in SPLIT_NAMES:
                raise UserError(f"data.root={path}, line {number}: split={split}; give {', '.join(SPLITS)}")
            read = partial(guarded, (path.parent / name.replace("\\", "/")).read_bytes)
            yield Item(SPLIT_NAMES[(split or TRAIN).casefold()], class_name(label), name, read)


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a data set consists of; none where it consists of something else."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*.parquet") if is_parquet(file))
    return [path] if is_parquet(path) else []


def _parquet(root: Path, shards: list[Path]) -> Iterator[Item | LeftOut]:
    from serving.model.pictures.parquet import ParquetFile

    for shard in shards:
        # Hugging Face's are named data/train-00000-of-00003.parquet, or train/0000.parquet.
        words = re.split(r"[^a-z]+", shard.relative_to(root.parent).as_posix().casefold())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), TRAIN)
        file = ParquetFile(shard, "data.root")
        for label, picture in zip(file.labels(), file.read_from(0), strict=True):
            name = f"{shard.stem}/{picture.name}"
            if label is None:
                yield LeftOut(name, "without a label")
            else:
                yield Item(split, class_name(label), name, picture.read)


def cifar10(root: str) -> Iterator[Item]:
    """Downloads CIFAR-10 into `root` once, verified by torchvision against its known checksums."""
    from torchvision.datasets import CIFAR10

    for split in (TRAIN, TEST):
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(SECONDS_WITHOUT_DATA)  # torchvision itself would wait for ever
        try:
            dataset = CIFAR10(root, train=split == TRAIN, download=True)
        except (OSError, RuntimeError) as error:
            if full_disk(error):
                raise
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
        yield _decoded(TRAIN if index % 5 else TEST, str(target), index, np.repeat(grey[..., None], 3, axis=2))


def _decoded(split: str, label: str, index: int, pixels: np.ndarray) -> Item:
    return Item(split, label, f"{split}/{label}/{index:05d}", lambda: pixels)
