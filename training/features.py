"""What a frozen backbone makes of pictures: computed once, so that training the head costs almost nothing."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data import AlbumentationsDataset, Pictures
from training.models import CIFARClassifier
from training.progress import progress


class Features(Dataset[tuple[Tensor, int]]):
    """Stands in for the pictures where the head alone is trained or validated.

    Args:
        features: float32 (N, D).
        labels: int64 (N,).
    """

    def __init__(self, features: Tensor, labels: np.ndarray) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], int(self.labels[index])

    def set_seed(self, seed: int) -> None:
        """Nothing is random any more: the pictures were augmented before."""

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yields indices (n,) and features (n, D), n <= batch_size."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield indices, self.features[start : start + batch_size]


@torch.no_grad()
def features_of(
    model: CIFARClassifier, pictures: AlbumentationsDataset | Pictures, batch_size: int, num_workers: int = 0
) -> Features:
    """One pass of the backbone over pictures, augmented once if they are an AlbumentationsDataset."""
    model.eval()
    device = next(model.parameters()).device
    rows: list[Tensor] = []

    def add(images: Tensor) -> None:
        rows.append(model.backbone(model.preprocessing(images.to(device))).float().cpu())

    if isinstance(pictures, AlbumentationsDataset):
        loader = DataLoader(pictures, batch_size, num_workers=num_workers)
        for images, _ in progress(loader, "features"):
            add(images)
        return Features(torch.cat(rows), pictures.pictures.labels)
    order = []
    for indices, images in progress(pictures.batches(batch_size), "features"):
        add(torch.from_numpy(images))
        order.append(indices)
    places = np.concatenate(order)
    return Features(torch.cat(rows), pictures.labels[places])
