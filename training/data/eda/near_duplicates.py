"""Pictures that are there more than once: to the bit with two labels, or nearly, in training and in test."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import uniform_filter

from training.data.pictures import Pictures
from training.data.split import ImageData
from training.progress import progress

THUMBNAIL = 16
CHUNK = 1024  # training pictures to a matrix product


@dataclass(frozen=True)
class Neighbours:
    """For every test picture the training picture most like it."""

    training: Pictures
    test: Pictures
    nearest: np.ndarray  # int64 (N,), indices into the training pictures
    similarity: np.ndarray  # float32 (N,), in [-1, 1]
    threshold: float  # the similarity from which a pair counts as near-duplicates

    @property
    def order(self) -> np.ndarray:
        """The test pictures' indices, the closest pair first."""
        return np.argsort(-self.similarity, kind="stable")

    @property
    def duplicates(self) -> np.ndarray:
        """The indices of the test pictures that have a near-duplicate, the closest pair first."""
        return self.order[: int((self.similarity >= self.threshold).sum())]

    def around_threshold(self, count: int) -> np.ndarray:
        """The indices of the test pictures in the last pairs that count and in the first that don't."""
        start = max(len(self.duplicates) - count // 2, 0)
        return self.order[start : start + count]

    @property
    def contradictions(self) -> int:
        """How many of these pairs have two labels."""
        pairs = self.duplicates
        return int((self.training.labels[self.nearest[pairs]] != self.test.labels[pairs]).sum())


def nearest_neighbours(training: Pictures, test: Pictures, threshold: float) -> Neighbours:
    """Finds each test picture's nearest training picture by normalised cross-correlation of small grey thumbnails.

    The thumbnails are normalised by local contrast first (Jarrett et al., "What is the best multi-stage architecture
    for object recognition?", ICCV 2009): without that, any two pictures with a bright sky or on white are much alike.
    With it, a copy is found though its colours, brightness or contrast were changed; one that was cropped, turned or
    mirrored is not. Barz and Denzler ("Do we train on test data?", 2020) searched with the features of a network and
    by eye, and found duplicates of 3.3 % of CIFAR-10's test pictures.

    All pairs are compared, in matrix products over parts of the training pictures: 50,000 by 10,000 in seconds.
    """
    known, asked = _signatures(training), _signatures(test)
    nearest, similarity = np.zeros(len(test), np.int64), np.full(len(test), -np.inf, np.float32)
    for start in progress(range(0, len(training), CHUNK), "looking for near-duplicates"):
        products = asked @ known[start : start + CHUNK].T
        best = products.argmax(axis=1)
        values = products[np.arange(len(test)), best]
        closer = values > similarity
        nearest[closer], similarity[closer] = best[closer] + start, values[closer]
    return Neighbours(training, test, nearest, similarity, threshold)


def _signatures(pictures: Pictures) -> np.ndarray:
    """Thumbnails whose inner products are correlations: float32 (N, D), of length 1; 0 of a flat picture."""
    thumbnails = np.empty((len(pictures), THUMBNAIL, THUMBNAIL), np.float32)
    for index, thumbnail in enumerate(thumbnails):
        grey = cv2.cvtColor(pictures[index], cv2.COLOR_RGB2GRAY)
        thumbnail[:] = cv2.resize(grey, thumbnail.shape, interpolation=cv2.INTER_AREA)
    window = (0, 5, 5)
    detail = thumbnails - uniform_filter(thumbnails, window)
    # Four grey levels: what is fainter comes from compression rather than from what is shown.
    detail /= np.sqrt(uniform_filter(detail**2, window)) + 4
    # Frames would make their pictures alike.
    signatures = detail[:, 1:-1, 1:-1].reshape(len(pictures), -1)
    signatures -= signatures.mean(axis=1, keepdims=True)
    return signatures / np.maximum(np.linalg.norm(signatures, axis=1, keepdims=True), 1e-6)


def contradictions(data: ImageData) -> list[tuple[int, str, str, str]]:
    """Pictures of the same content that have different labels: a number for the group, split, label and name."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    hashes, labels = (
        np.concatenate([getattr(part, column) for part in splits.values()]) for column in ("hashes", "labels")
    )
    places = [(split, str(name)) for split, part in splits.items() for name in part.names]
    _, group = np.unique(hashes, return_inverse=True)
    order = np.lexsort((labels, group))
    differ = (group[order][1:] == group[order][:-1]) & (labels[order][1:] != labels[order][:-1])
    groups = np.unique(group[order][1:][differ])
    found = []
    for number, members in enumerate((np.flatnonzero(group == value) for value in groups), 1):
        found += [(number, places[index][0], data.classes[labels[index]], places[index][1]) for index in members]
    return found


def pairs(neighbours: Neighbours, classes: list[str]) -> Iterator[tuple[str, str, str, str, str]]:
    """The near-duplicates, the closest first: similarity, test picture, its label, training picture, its label."""
    test, training = neighbours.test, neighbours.training
    for index in neighbours.duplicates:
        twin = neighbours.nearest[index]
        labels = classes[test.labels[index]], classes[training.labels[twin]]
        similarity = f"{neighbours.similarity[index]:.4f}"
        yield similarity, str(test.names[index]), labels[0], str(training.names[twin]), labels[1]
