"""What the trainer reads."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from serving.model.pictures.decoding import AS_SHOWN
from training.config import compose
from training.data.augmentation import AlbumentationsDataset, build_transform
from training.data.split import load_data


@pytest.mark.parametrize(
    ("transforms", "size"), [("reference", 64), ("no_coarse_dropout", 64), ("native", 8), ("randaugment", 8)]
)
def test_augmented_pictures_have_one_size_and_follow_the_seed(transforms: str, size: int) -> None:
    settings = compose(["data=digits", f"transforms={transforms}"])
    data = load_data(settings.data, 1, AS_SHOWN)

    def epoch(seed: int) -> torch.Tensor:
        dataset = AlbumentationsDataset(data.train, build_transform(settings.transforms, data.train.common_size(), 64))
        dataset.set_seed(seed)
        return torch.stack([dataset[index][0] for index in range(8)])

    assert epoch(1).shape == (8, size, size, 3)
    assert epoch(1).dtype == torch.uint8
    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


def test_a_picture_s_augmentation_follows_from_seed_and_index_whoever_asks() -> None:
    """128 times the same picture: each result is another, and the same with any number of workers and in any order."""
    settings = compose(["data=digits", "data.horizontal_flip=0.5"])
    data = load_data(settings.data, 1, AS_SHOWN)
    copies = data.train.subset(np.zeros(128, int))
    dataset = AlbumentationsDataset(copies, build_transform(settings.transforms, None, 32))
    dataset.set_seed(3)
    alone = torch.stack([dataset[index][0] for index in range(128)])
    assert len(alone.flatten(1).unique(dim=0)) > 100
    for workers in (2, 3):
        loader = DataLoader(dataset, 16, num_workers=workers)
        assert torch.equal(torch.cat([images for images, _ in loader]), alone)
    assert torch.equal(torch.stack([dataset[index][0] for index in reversed(range(128))]).flip(0), alone)
