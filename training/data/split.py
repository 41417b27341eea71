"""A data set: its pictures, decoded and split with every class in proportion."""

from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit

from serving.model.errors import UserError
from training.data.cache import Cache
from training.data.pictures import Pictures
from training.settings import DataSettings


@dataclass(frozen=True)
class ImageData:
    """`classes` are in alphabetical order; `fingerprint` is the SHA-256 of all that is in the data set."""

    name: str
    classes: list[str]
    train: Pictures
    validation: Pictures
    test: Pictures
    fingerprint: str


def load_data(settings: DataSettings, seed: int) -> ImageData:
    """Loads pictures through the cache and splits off the validation set; a limit leaves pictures out by the seed too.

    Raises UserError where the pictures are missing, broken, or can't be split.
    """
    arguments = dict(settings.source)
    source = partial(resolve_name(arguments.pop("_target_")), **arguments)
    cached = Cache(settings.cache_dir, settings.broken).load(source)
    train, validation = stratified_split(cached.splits["train"], settings.validation_fraction, seed)
    return ImageData(
        name=settings.name,
        classes=cached.classes,
        train=stratified_sample(train, settings.train_limit, seed),
        validation=stratified_sample(validation, settings.validation_limit, seed),
        test=stratified_sample(cached.splits["test"], settings.test_limit, seed),
        fingerprint=cached.fingerprint,
    )


def stratified_split(pictures: Pictures, fraction: float, seed: int) -> tuple[Pictures, Pictures]:
    """Splits off `fraction` of the pictures; returns the rest and the part."""
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    try:
        rest, part = next(splitter.split(pictures.labels, pictures.labels))
    except ValueError as error:
        message = f"{len(pictures)} training pictures can't be split with data.validation_fraction={fraction}: {error}"
        raise UserError(message) from error
    return pictures.subset(rest), pictures.subset(part)


def stratified_sample(pictures: Pictures, limit: int | None, seed: int) -> Pictures:
    """At most `limit` of the pictures; all of them where it is None."""
    if limit is None or limit >= len(pictures):
        return pictures
    shuffled = np.random.default_rng(seed).permutation(len(pictures))
    by_class = shuffled[np.argsort(pictures.labels[shuffled], kind="stable")]
    return pictures.subset(np.sort(by_class[np.arange(limit) * len(pictures) // limit]))
