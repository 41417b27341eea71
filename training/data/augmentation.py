"""Augmented pictures, as the trainer reads them."""

import math

import albumentations as A
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from training.data.pictures import Pictures
from training.settings import TransformsSettings, build


def build_transform(settings: TransformsSettings, own_size: int | None, image_size: int) -> A.Compose:
    """Builds the augmentation, at the size that `resolution` says.

    `model` is the model's `image_size`, as in the reference. `native` is the pictures' `own_size` (their side where
    all are squares of one size, else None) where it is smaller, which is far less work.
    """
    size = min(own_size or image_size, image_size) if settings.resolution == "native" else image_size
    return A.Compose([build(step, size, padded_size=math.ceil(1.1 * size)) for step in settings.steps.values()])


class AlbumentationsDataset(Dataset[tuple[Tensor, int]]):
    """Augmented pictures, uint8 (H, W, 3) of one size as `transform` gives them, and their labels' indices."""

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
    """The seed of all that is random in an epoch; no other seed and epoch share it but by rare chance."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
