"""Which misclassified pictures a report shows."""

import numpy as np

from tests.helpers.state import TINY
from training.config import compose
from training.data.split import load_data
from training.quality.evaluation import evaluate
from training.quality.report import typical, worst


def test_the_worst_are_the_surest_and_the_typical_the_most_frequent() -> None:
    pictures = load_data(compose(TINY).data, 1).test
    classes = [str(digit) for digit in range(10)]
    probabilities = np.full((len(pictures), 10), 0.01)
    probabilities[np.arange(len(pictures)), pictures.labels] = 0.91
    zeros = np.flatnonzero(pictures.labels == 0)[:3]
    (one,) = np.flatnonzero(pictures.labels == 1)[:1]
    for index, confidence in zip(zeros, (0.5, 0.7, 0.6), strict=True):  # zeros taken for eights
        probabilities[index, [0, 8]] = 0.1, confidence
    probabilities[one, [1, 7]] = 0.05, 0.9  # and a one for a seven
    evaluation = evaluate(probabilities, pictures, classes)
    assert [index for index, _ in worst(evaluation)] == [one, zeros[1], zeros[2], zeros[0]]
    chosen = typical(evaluation)
    assert [index for index, _ in chosen] == [zeros[2], one]
    assert chosen[0][1] == f"3 of {(pictures.labels == 0).sum()} pictures of 0 are taken for 8"
