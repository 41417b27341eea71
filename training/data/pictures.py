"""The decoded pictures of one split."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BATCH_BYTES = 2**26


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of one split, each at its own size."""

    pixels: np.ndarray  # uint8, every picture's RGB pixels, one picture after another; memory-mapped
    offsets: np.ndarray  # int64 (N,), where each picture starts in `pixels`
    sizes: np.ndarray  # int32 (N, 2), each picture's height and width
    labels: np.ndarray  # int64 (N,), indices into the classes
    names: np.ndarray  # (N,), each picture's path in its source
    hashes: np.ndarray  # uint64 (N,), of each picture's content

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        """One picture, uint8 (H, W, 3); a view of the cache."""
        height, width = self.sizes[index]
        start = self.offsets[index]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    def subset(self, indices: np.ndarray) -> "Pictures":
        """The pictures at `indices`, without copying a pixel."""
        columns = (self.offsets, self.sizes, self.labels, self.names, self.hashes)
        return Pictures(self.pixels, *(column[indices] for column in columns))

    def common_size(self) -> int | None:
        """The side of the pictures where all are squares of one size, else None."""
        sides = np.unique(self.sizes)
        return int(sides[0]) if len(sides) == 1 else None

    def batches(self, batch_size: int) -> "Batches":
        """Indices (n,) and pictures (n, H, W, 3) of one size; at most `batch_size`, or BATCH_BYTES of them."""
        order = np.lexsort((self.sizes[:, 1], self.sizes[:, 0]))
        changes = np.flatnonzero(np.any(np.diff(self.sizes[order], axis=0), axis=1)) + 1
        indices = []
        for same_size in np.split(order, changes):
            size = int(self.sizes[same_size[:1]].prod()) * 3
            count = max(1, min(batch_size, BATCH_BYTES // max(size, 1)))
            indices += [same_size[start : start + count] for start in range(0, len(same_size), count)]
        return Batches(self, indices)


@dataclass(frozen=True)
class Batches:
    """Pictures, a batch at a time, and how many batches there are."""

    pictures: Pictures
    indices: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for indices in self.indices:
            yield indices, np.stack([self.pictures[index] for index in indices])
