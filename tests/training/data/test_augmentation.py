"""What the trainer reads."""

import pytest
import torch

from serving.model.pictures.decoding import AS_SHOWN
from training.config import compose
from training.data.augmentation import AlbumentationsDataset, build_transform
from training.data.split import load_data


@pytest.mark.parametrize(("transforms", "size"), [("reference", 64), ("no_coarse_dropout", 64), ("native", 8)])
def test_augmented_pictures_have_one_size_and_follow_the_seed(transforms: str, size: int) -> None:
    settings = compose(["data=digits", f"transforms={transforms}"])
    data = load_data(settings.data, 1, AS_SHOWN)

    def epoch(seed: int) -> torch.Tensor:
        dataset = AlbumentationsDataset(data.train, build_transform(settings.transforms, data.train.common_size(), 64))
        dataset.transform.set_random_seed(seed)
        return torch.stack([dataset[index][0] for index in range(8)])

    assert epoch(1).shape == (8, size, size, 3)
    assert epoch(1).dtype == torch.uint8
    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
