import numpy as np
import pytest

from training.data.pictures import Pictures
from training.quality.evaluation import evaluate
from training.quality.figures import confusion_figure, evaluation_figures

CLASSES = ["cat", "dog", "owl"]


def pictures(labels: list[int]) -> Pictures:
    """Black pictures of one pixel."""
    count = len(labels)
    names = np.arange(count).astype(str)
    sizes = np.ones((count, 2), np.int32)
    return Pictures(np.zeros(3 * count, np.uint8), 3 * np.arange(count), sizes, np.array(labels), names)


def test_the_metrics_of_a_small_example() -> None:
    """Four cats, one taken for a dog; two dogs; two owls, both taken for dogs."""
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 1, 1, 1]]
    evaluation = evaluate(probabilities, pictures([0, 0, 0, 0, 1, 1, 2, 2]), CLASSES)
    assert evaluation.metrics["accuracy"] == 5 / 8
    assert evaluation.metrics["precision"] == pytest.approx((1 + 2 / 5 + 0) / 3)
    assert evaluation.metrics["recall"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert evaluation.metrics["f1"] == pytest.approx((6 / 7 + 4 / 7 + 0) / 3)
    assert evaluation.metrics["calibration_error"] == pytest.approx(3 / 8, abs=1e-6)
    assert evaluation.confusion.tolist() == [[3, 1, 0], [0, 2, 0], [0, 2, 0]]
    assert [row["pictures"] for row in evaluation.per_class] == [4, 2, 2]
    assert confusion_figure(evaluation).axes[0].get_title() == "accuracy 62.50%"
    assert all(figure.startswith(b"\x89PNG") for figure in evaluation_figures(evaluation).values())
