"""Pictures in memory: decoded once into a memory-mapped cache, split, augmented and batched."""

import contextlib
import hashlib
import io
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image, ImageOps
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from torch.utils.data import Dataset

from training.errors import UserError, full_disk_in_words
from training.progress import progress
from training.sources import SPLITS, Item

log = logging.getLogger(__name__)

# Part of the cache's key: raise it when the cache's layout changes.
CACHE_VERSION = 2
BROKEN_FILE = "broken.json"
# Image files that are taken; serving/images.py takes the same.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")

Source = Callable[[], Iterator[Item]]


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of one split, each at its own size.

    Attributes:
        pixels: uint8, every picture's RGB pixels one behind the other; memory-mapped.
        offsets: int64 (N,), where each picture starts in `pixels`.
        sizes: int32 (N, 2), each picture's height and width.
        labels: int64 (N,), indices into the classes.
        names: (N,), each picture's path in its source.
    """

    pixels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        """One picture, uint8 (H, W, 3); a view of the cache."""
        height, width = self.sizes[index]
        start = self.offsets[index]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    def subset(self, indices: np.ndarray) -> "Pictures":
        """The pictures at `indices`, without copying a pixel."""
        return Pictures(
            self.pixels, self.offsets[indices], self.sizes[indices], self.labels[indices], self.names[indices]
        )

    def common_size(self) -> int | None:
        """The side of the pictures where all are squares of one size, else None."""
        sides = np.unique(self.sizes)
        return int(sides[0]) if len(sides) == 1 else None

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields indices (n,) and pictures (n, H, W, 3), n <= batch_size; all of a batch have one size."""
        order = np.lexsort((self.sizes[:, 1], self.sizes[:, 0]))
        changes = np.flatnonzero(np.any(np.diff(self.sizes[order], axis=0), axis=1)) + 1
        for same_size in np.split(order, changes):
            for start in range(0, len(same_size), batch_size):
                indices = same_size[start : start + batch_size]
                yield indices, np.stack([self[index] for index in indices])


@dataclass(frozen=True)
class ImageData:
    """A data set: its classes, its splits, and the SHA-256 of all that is in it."""

    name: str
    classes: list[str]
    train: Pictures
    validation: Pictures
    test: Pictures
    fingerprint: str


@full_disk_in_words()
def load_data(config: DictConfig, seed: int) -> ImageData:
    """Loads the configured pictures through the cache and splits off the validation set.

    Args:
        config: the `data` group.
        seed: of the split and of the choice where `train_limit` or `test_limit` leave pictures out.

    Raises:
        UserError: the pictures are missing, broken, or can't be split.
    """
    loader = ImageLoader(Path(config.cache_dir), config.broken)
    fingerprint, classes, splits = loader.load(instantiate(config.source, _partial_=True))
    train, validation = stratified_split(splits["train"], config.validation_fraction, seed)
    return ImageData(
        name=config.name,
        classes=classes,
        train=stratified_sample(train, config.train_limit, seed),
        validation=stratified_sample(validation, config.validation_limit, seed),
        test=stratified_sample(splits["test"], config.test_limit, seed),
        fingerprint=fingerprint,
    )


class ImageLoader:
    """Decodes pictures once and keeps them under `cache_dir`, in a directory named by their fingerprint.

    Args:
        broken: `refuse` or `skip` pictures that can't be decoded; either way they are named and counted.
    """

    def __init__(self, cache_dir: Path, broken: str) -> None:
        self.cache_dir = cache_dir
        self.broken = broken

    def load(self, source: Source) -> tuple[str, list[str], dict[str, Pictures]]:
        """Returns the fingerprint, the classes in alphabetical order, and the pictures of each split.

        Args:
            source: gives the pictures anew at each call; called once where they are in the cache, else twice.
        """
        fingerprint, classes = _fingerprint(progress(source(), "reading"))
        directory = self.cache_dir / f"v{CACHE_VERSION}-{self.broken}-{fingerprint[:16]}"
        if not directory.exists():
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.cache_dir, ignore_cleanup_errors=True) as partial:
                broken = _write(Path(partial) / "cache", source(), classes)
                if broken and self.broken == "refuse":
                    raise UserError(f"{_named(broken)}.\nMend them, or leave them out with data.broken=skip.")
                try:
                    (Path(partial) / "cache").rename(directory)
                except OSError:
                    if not directory.exists():  # else another process was as quick
                        raise
        if broken := json.loads((directory / BROKEN_FILE).read_text()):
            log.warning("left out: %s", _named(broken))
        splits = {split: _read(directory / split) for split in SPLITS}
        for split, pictures in splits.items():
            if absent := [label for index, label in enumerate(classes) if index not in pictures.labels]:
                raise UserError(
                    f"none of the pictures in {split}/{absent[0]}/ can be decoded; add some, or remove the class"
                )
        return fingerprint, classes, splits


def _named(broken: list[str]) -> str:
    more = ", ..." if len(broken) > 5 else ""
    return f"{len(broken)} of the pictures can't be decoded: {', '.join(broken[:5])}{more}"


def _fingerprint(items: Iterable[Item]) -> tuple[str, list[str]]:
    digest = hashlib.sha256()
    classes = set()
    for item in items:
        content = item.content if isinstance(item.content, bytes) else np.ascontiguousarray(item.content).data
        # Where the folder or archive lies does not count, nor how its pictures are called.
        digest.update(f"{item.split}/{item.label}/".encode())
        digest.update(hashlib.sha256(content).digest())
        classes.add(item.label)
    return digest.hexdigest(), sorted(classes)


def _write(directory: Path, items: Iterable[Item], classes: list[str]) -> list[str]:
    """Decodes the pictures into `directory`; returns the names of the broken ones."""
    columns: dict[str, tuple[list[tuple[int, ...]], list[int], list[str]]] = {split: ([], [], []) for split in SPLITS}
    broken: list[str] = []
    with contextlib.ExitStack() as stack:
        files = {}
        for split in SPLITS:
            (directory / split).mkdir(parents=True)
            files[split] = stack.enter_context(open(directory / split / "pixels.bin", "wb"))
        for item in progress(items, "decoding"):
            try:
                pixels = decode(item.content) if isinstance(item.content, bytes) else item.content
            except Exception:  # Pillow's decoders raise many kinds for a broken file
                broken.append(item.name)
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


def decode(content: bytes) -> np.ndarray:
    """An image file's bytes -> uint8 (H, W, 3), RGB, upright as its EXIF orientation says."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I;16":  # Pillow's convert() would clip 16 bits; the upper 8 are kept, as of its colours
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.asarray(upright.convert("RGB"))


def stratified_split(pictures: Pictures, fraction: float, seed: int) -> tuple[Pictures, Pictures]:
    """Splits off `fraction` of the pictures with every class in proportion; returns the rest and the part."""
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    try:
        rest, part = next(splitter.split(pictures.labels, pictures.labels))
    except ValueError as error:
        raise UserError(
            f"{len(pictures)} training pictures can't be split with data.validation_fraction={fraction}: {error}"
        ) from error
    return pictures.subset(rest), pictures.subset(part)


def stratified_sample(pictures: Pictures, limit: int | None, seed: int) -> Pictures:
    """At most `limit` of the pictures, with every class in proportion; all of them where it is None."""
    if limit is None or limit >= len(pictures):
        return pictures
    shuffled = np.random.default_rng(seed).permutation(len(pictures))
    by_class = shuffled[np.argsort(pictures.labels[shuffled], kind="stable")]
    return pictures.subset(np.sort(by_class[np.arange(limit) * len(pictures) // limit]))


def build_transform(config: DictConfig, own_size: int | None, image_size: int) -> A.Compose:
    """Builds the augmentation of the `transforms` group.

    Its `resolution` decides how large the pictures are while they are augmented: `model` is the model's image size,
    as in the reference; `native` is the pictures' own where they share one that is smaller, which is far less work.
    """
    size = min(own_size or image_size, image_size) if config.resolution == "native" else image_size
    sized = config.copy()
    sized.size, sized.padded_size = size, math.ceil(1.1 * size)
    return A.Compose([instantiate(step) for step in sized.steps.values()])


class AlbumentationsDataset(Dataset[tuple[Tensor, int]]):
    """Augmented pictures: uint8 (H, W, 3) and the label's index.

    Args:
        transform: ends in ToTensorV2 and gives every picture the same size.
    """

    def __init__(self, pictures: Pictures, transform: A.Compose) -> None:
        self.pictures = pictures
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = self.transform(image=self.pictures[index])["image"]
        # ToTensorV2 puts the channels first; the model's own layout has them last.
        return image.permute(1, 2, 0), int(self.pictures.labels[index])

    def set_seed(self, seed: int) -> None:
        """Makes the augmentation that follows a function of `seed` and the order of the pictures."""
        self.transform.set_random_seed(seed)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of all that is random in an epoch: one that no other seed and epoch share but by rare chance."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
