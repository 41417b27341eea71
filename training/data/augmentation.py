"""Augmented pictures, as the trainer reads them."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import albumentations as A
import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.data.pictures import Pictures
from training.settings import TransformsSettings, build


def build_transform(settings: TransformsSettings, own_size: int | None, picture_size: int) -> A.Compose:
    """Builds the augmentation, at the size that `resolution` says.

    `model` is the model's `picture_size`, as in the reference. `native` is the pictures' `own_size` (their side where
    all are squares of one size, else None) where it is smaller, which is far less work.
    """
    size = min(own_size or picture_size, picture_size) if settings.resolution == "native" else picture_size
    return A.Compose([build(step, size, padded_size=math.ceil(1.1 * size)) for step in settings.steps.values()])


class Fit(A.ImageOnlyTransform):
    """Makes a square of a picture as `Preprocessing` does, so that training sees what is served."""

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        size: Annotated[int, Field(gt=0)]
        fit: Literal["crop", "squash", "pad"]
        mean: Annotated[list[float], Field(min_length=3, max_length=3)]
        interpolation: Literal["bilinear", "bicubic"]

    def __init__(self, size: int, fit: str, mean: Sequence[float], interpolation: str, p: float = 1.0) -> None:
        super().__init__(p)
        self.size = size
        self.fit = fit
        self.interpolation = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[interpolation]
        self.fill = [255 * value for value in mean]

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        height, width = img.shape[:2]
        if self.fit == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            img = img[top : top + side, left : left + side]
        elif self.fit == "pad":
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            edges = (top, side - height - top, left, side - width - left)
            img = cv2.copyMakeBorder(img, *edges, cv2.BORDER_CONSTANT, value=self.fill)
        return cv2.resize(img, (self.size, self.size), interpolation=self.interpolation)


class AlbumentationsDataset(Dataset[tuple[Tensor, int]]):
    """Augmented pictures, uint8 (H, W, 3) of one size as `transform` gives them, and their labels' indices."""

    def __init__(self, pictures: Pictures, transform: A.Compose) -> None:
        self.pictures = pictures
        self.transform = transform
        self.seed = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see the next epoch's

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        random_generator = np.random.default_rng((int(self.seed), index))
        self.transform.set_random_state(random_generator, random.Random(int(random_generator.integers(2**63))))  # noqa: S311
        image: Tensor = self.transform(image=self.pictures[index])["image"]
        # ToTensorV2 puts the channels first; the model's own layout has them last.
        return image.permute(1, 2, 0), int(self.pictures.labels[index])

    def set_seed(self, seed: int) -> None:
        """Makes the augmentation that follows a function of `seed` and the picture's index, whoever asks for it."""
        self.seed.fill_(seed)


class Shuffled(Sampler[int]):
    """The indices of some of `size` pictures in an order that follows from `seed`, whoever asks for it."""

    def __init__(self, size: int) -> None:
        self.size = self.taken = size
        self.seed = 0

    def take(self, count: int) -> None:
        """Lets the passes that follow end after so many, at most `size`."""
        self.taken = min(count, self.size)

    def __len__(self) -> int:
        return self.taken

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed))
        return iter(order[: self.taken].tolist())


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of all that is random in an epoch; no other seed and epoch share it but by rare chance."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
