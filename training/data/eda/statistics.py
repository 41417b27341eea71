"""What the pixels of a data set are like."""

from dataclasses import dataclass

import numpy as np

from training.data.pictures import Pictures
from training.data.split import ImageData
from training.progress import progress


def training_pictures(data: ImageData) -> Pictures:
    """The training and the validation pictures together, as they were before the split."""
    parts = (data.train, data.validation)
    columns = ("offsets", "sizes", "labels", "names", "hashes")
    # Both are parts of one cache, so that they share their pixels.
    return Pictures(
        data.train.pixels, *(np.concatenate([getattr(part, column) for part in parts]) for column in columns)
    )


@dataclass(frozen=True)
class PixelStatistics:
    histograms: np.ndarray  # int64 (classes, 3, 256), how often each value occurs in the RGB channels
    brightness: np.ndarray  # float64 (N,), each picture's mean luma (ITU-R BT.601) in [0, 1]

    @property
    def mean(self) -> np.ndarray:
        """Per channel over all pixels, of values in [0, 1]; float64 (3,)."""
        return self._moment(1)

    @property
    def std(self) -> np.ndarray:
        """Per channel over all pixels, of values in [0, 1]; float64 (3,)."""
        return np.sqrt(self._moment(2) - self.mean**2)

    def _moment(self, power: int) -> np.ndarray:
        counts = self.histograms.sum(axis=0)
        return counts @ (np.arange(256) / 255) ** power / counts.sum(axis=1)


def pixel_statistics(pictures: Pictures, what: str) -> PixelStatistics:
    """Counts every pixel once; `what` names the pictures while it goes on."""
    histograms = np.zeros((pictures.labels.max() + 1, 3, 256), np.int64)
    means = np.empty((len(pictures), 3))
    for index in progress(range(len(pictures)), f"counting the {what} pixels"):
        counts = np.stack([np.bincount(channel, minlength=256) for channel in pictures[index].reshape(-1, 3).T])
        histograms[pictures.labels[index]] += counts
        means[index] = counts @ np.arange(256) / counts[0].sum()
    return PixelStatistics(histograms, means @ (0.299, 0.587, 0.114) / 255)
