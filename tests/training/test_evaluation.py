import numpy as np

from training.evaluation import confusion_figure, evaluate

CLASSES = ["cat", "dog", "owl"]


def test_the_metrics_of_a_small_example() -> None:
    """Four cats, one taken for a dog; two dogs; two owls, both taken for dogs."""
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 1, 1, 1]]
    evaluation = evaluate(probabilities, labels, CLASSES)
    assert evaluation.metrics["accuracy"] == 5 / 8
    np.testing.assert_allclose(evaluation.metrics["precision"], (1 + 2 / 5 + 0) / 3)
    np.testing.assert_allclose(evaluation.metrics["recall"], (3 / 4 + 1 + 0) / 3)
    np.testing.assert_allclose(evaluation.metrics["f1"], (6 / 7 + 4 / 7 + 0) / 3)
    np.testing.assert_allclose(evaluation.metrics["calibration_error"], 3 / 8, atol=1e-6)
    assert evaluation.confusion.tolist() == [[3, 1, 0], [0, 2, 0], [0, 2, 0]]
    assert [row["pictures"] for row in evaluation.per_class] == [4, 2, 2]
    assert confusion_figure(evaluation, CLASSES).axes[0].get_title() == "accuracy 62.50%"
