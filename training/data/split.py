"""A data set: its pictures, decoded and split."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pkgutil import resolve_name

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit

from serving.model.errors import UserError
from serving.model.pictures.decoding import Decoding
from training.data.cache import Cache
from training.data.layouts import TEST, TRAIN, VALIDATION
from training.data.pictures import Pictures
from training.data.sources import LeftOut
from training.settings import DataSettings


@dataclass(frozen=True)
class ImageData:
    """A data set as it is trained on."""

    name: str
    classes: list[str]  # in alphabetical order
    train: Pictures
    validation: Pictures
    test: Pictures
    fingerprint: str  # the SHA-256 of all that is in it
    origins: dict[str, str]  # where each split comes from, for people
    left_out: list[LeftOut]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What the data set was taken for: a row a split, of its name, pictures, pictures of a class, and origin."""
        rows = []
        for split, pictures in ((TRAIN, self.train), (VALIDATION, self.validation), (TEST, self.test)):
            counts = np.bincount(pictures.labels, minlength=len(self.classes))
            rows.append((split, f"{len(pictures):,}", f"{counts.min():,} to {counts.max():,}", self.origins[split]))
        return rows

    def with_classes(self, classes: list[str]) -> "ImageData":
        """The same pictures with the labels of a list of classes that has at least theirs."""
        numbers = np.array([classes.index(name) for name in self.classes])
        train, validation, test = (
            replace(pictures, labels=numbers[pictures.labels]) for pictures in (self.train, self.validation, self.test)
        )
        return replace(self, classes=classes, train=train, validation=validation, test=test)

    def left_out_by_kind(self) -> dict[str, list[LeftOut]]:
        kinds: dict[str, list[LeftOut]] = defaultdict(list)
        for entry in self.left_out:
            kinds[entry.kind].append(entry)
        return kinds

    def table(self) -> str:
        """`rows`, and what is left out, for a log."""
        rows = [("", "pictures", "of a class", "where from"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [f"{self.name}: {len(self.classes)} classes: {', '.join(self.classes):.200}"]
        for row in rows:
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for kind, entries in self.left_out_by_kind().items():
            lines.append(f"left out, {kind}: {len(entries)}, such as {entries[0].name}")
        return "\n".join(lines)


def load_data(settings: DataSettings, seed: int, decoding: Decoding, for_training: bool = True) -> ImageData:
    """Loads pictures through the cache, and splits off what is not split yet; for other uses test pictures are enough.

    The seed is that of the validation set, and of the choice where a limit leaves pictures out. Raises UserError where
    the pictures are missing, broken, or can't be split.
    """
    arguments = dict(settings.source)
    source = partial(resolve_name(arguments.pop("_target_")), **arguments)
    cached = Cache(settings.cache_dir, settings.broken, decoding).load(source, for_training)
    train, validation, test = (cached.splits[split] for split in (TRAIN, VALIDATION, TEST))
    origins = dict.fromkeys(cached.splits, "given")
    if not len(test):
        train, test = split_by_content(train, settings.test_fraction)
        origins[TEST] = f"{settings.test_fraction:.0%} of each class, by the pictures' content"
    if not len(validation) and len(train):
        train, validation = stratified_split(train, settings.validation_fraction, seed)
        origins[VALIDATION] = f"{settings.validation_fraction:.0%} of each class, by the seed"
    splits = {TRAIN: train, VALIDATION: validation, TEST: test}
    for split, pictures in splits.items():
        limit = getattr(settings, f"{split}_limit")
        splits[split] = stratified_sample(pictures, limit, seed)
        if len(splits[split]) < len(pictures):
            origins[split] = f"{len(splits[split]):,} of {len(pictures):,} (data.{split}_limit), {origins[split]}"
    return ImageData(
        name=settings.name,
        classes=cached.classes,
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        test=splits[TEST],
        fingerprint=cached.fingerprint,
        origins=origins,
        left_out=cached.left_out,
    )


def split_by_content(pictures: Pictures, fraction: float) -> tuple[Pictures, Pictures]:
    """Splits off about `fraction` of each class, at least one; returns the rest and the part.

    On which side a picture falls follows from its content alone: equal pictures fall on one side, and what was once a
    test picture stays one when others are added. Only in a class that has none by that rule the one that comes closest
    is taken, which may be another one later; either way a model is never tested on what an earlier one was trained on.
    """
    chosen = pictures.hashes < fraction * 2.0**64
    for label in np.unique(pictures.labels):
        members = np.flatnonzero(pictures.labels == label)
        if not chosen[members].any():
            chosen |= pictures.hashes == pictures.hashes[members].min()
        if chosen[members].all():
            raise UserError(
                f"a class of {len(members)} pictures, {pictures.names[members[0]]} among them, is too small to split "
                f"off a test set with data.test_fraction={fraction}; add some, or remove the class"
            )
    return pictures.subset(np.flatnonzero(~chosen)), pictures.subset(np.flatnonzero(chosen))


def stratified_split(pictures: Pictures, fraction: float, seed: int) -> tuple[Pictures, Pictures]:
    """Splits off `fraction` of the pictures with every class in proportion; returns the rest and the part."""
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    try:
        rest, part = next(splitter.split(pictures.labels, pictures.labels))
    except ValueError as error:
        message = f"{len(pictures)} training pictures can't be split with data.validation_fraction={fraction}: {error}"
        raise UserError(message) from error
    return pictures.subset(rest), pictures.subset(part)


def stratified_sample(pictures: Pictures, limit: int | None, seed: int) -> Pictures:
    """At most `limit` of the pictures with every class in proportion; all of them where it is None."""
    if limit is None or limit >= len(pictures):
        return pictures
    shuffled = np.random.default_rng(seed).permutation(len(pictures))
    by_class = shuffled[np.argsort(pictures.labels[shuffled], kind="stable")]
    return pictures.subset(np.sort(by_class[np.arange(limit) * len(pictures) // limit]))
