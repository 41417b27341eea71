"""What a frozen backbone makes of pictures: computed once, so that training the head costs almost nothing."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.augmentation import AlbumentationsDataset
from training.data.pictures import Pictures
from training.model.classifier import ImageClassifier
from training.progress import progress


class Features(Dataset[tuple[Tensor, int]]):
    """Stands in for the pictures where the head alone is trained: features (N, D) and labels (N,)."""

    def __init__(self, features: Tensor, labels: np.ndarray) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], int(self.labels[index])

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yields indices (n,) and features (n, D), n <= batch_size."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield indices, self.features[start : start + batch_size]


def augmented_features(
    model: ImageClassifier, pictures: AlbumentationsDataset, batch_size: int, num_workers: int
) -> Features:
    """One pass of the backbone over pictures, each augmented once."""
    on_gpu = next(model.parameters()).is_cuda
    loader = progress(DataLoader(pictures, batch_size, num_workers=num_workers, pin_memory=on_gpu), "features")
    return Features(
        torch.cat([_features(model, images, flip_average=False) for images, _ in loader]), pictures.pictures.labels
    )


def plain_features(model: ImageClassifier, pictures: Pictures, batch_size: int) -> Features:
    """One pass of the backbone over pictures as the classifier answers them, in the order of their batches."""
    batches = progress(pictures.batches(batch_size), "features")
    order, rows = zip(
        *((indices, _features(model, torch.from_numpy(images), model.flip_average)) for indices, images in batches),
        strict=True,
    )
    return Features(torch.cat(rows), pictures.labels[np.concatenate(order)])


@torch.no_grad()
def _features(model: ImageClassifier, images: Tensor, flip_average: bool) -> Tensor:
    model.eval()
    device = next(model.parameters()).device
    return model.features(images.to(device, non_blocking=True), flip_average).float().cpu()
