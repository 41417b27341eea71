import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from training.data.pictures import Pictures
from training.quality.evaluation import accuracy_interval, evaluate, torch_logits
from training.quality.figures import confusion_csv, confusions, evaluation_plots, plots

CLASSES = ["cat", "dog", "owl"]


def pictures(labels: list[int]) -> Pictures:
    """Black pictures of one pixel."""
    count = len(labels)
    names = np.arange(count).astype(str)
    sizes = np.ones((count, 2), np.int32)
    columns = 3 * np.arange(count), sizes, np.array(labels), names, np.arange(count, dtype=np.uint64)
    return Pictures(np.zeros(3 * count, np.uint8), *columns)


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
    assert confusions(evaluation) == [(2, 1, 2), (0, 1, 1)]
    assert confusion_csv(evaluation) == "true class,cat,dog,owl\ncat,3,1,0\ndog,0,2,0\nowl,0,2,0\n"
    assert set(evaluation_plots(evaluation)) == {"confusion", "reliability"}


def test_a_gpu_answers_in_whole_float32_whatever_it_trains_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or ONNX Runtime's answers would differ from its: in TF32 by more than a registered version may."""
    model = nn.Linear(2, 3)
    seen = []
    model.register_forward_hook(lambda *_: seen.append((torch.get_float32_matmul_precision(), tf32.allow_tf32)))
    tf32 = torch.backends.cudnn
    monkeypatch.setattr(tf32, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        torch_logits(model)(np.zeros((1, 2), np.float32))
        assert seen == [("highest", False)]
        assert (torch.get_float32_matmul_precision(), tf32.allow_tf32) == ("high", True), "training goes on as before"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_interval_is_wilsons() -> None:
    """For 81 of 263 successes Newcombe (1998) gives 0.2553 to 0.3662."""
    assert accuracy_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_a_class_without_test_pictures_counts_for_nothing() -> None:
    evaluation = evaluate(np.eye(3, dtype=np.float32)[[0, 0, 1]], pictures([0, 0, 1]), CLASSES)
    assert evaluation.metrics["recall"] == evaluation.metrics["f1"] == 1


def test_of_many_classes_the_most_frequent_confusions_are_shown() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 300, 3000)
    probabilities = random.dirichlet(np.full(300, 0.1), 3000).astype(np.float32)
    evaluation = evaluate(probabilities, pictures(labels.tolist()), [f"class {index}" for index in range(300)])
    (true, answer, count), *_ = confusions(evaluation)
    assert count == (evaluation.confusion - np.diag(np.diag(evaluation.confusion))).max()
    drawn = evaluation_plots(evaluation)["confusion"]
    assert f"class {true} → class {answer}" in drawn
    assert len(drawn) < 100_000
    assert confusion_csv(evaluation).count("\n") == 301


def test_a_plot_that_fails_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Figure:
        raise MemoryError

    drawn = plots({"good": lambda: Figure(), "bad": fails})
    assert set(drawn) == {"good"}
    assert "the plot bad is left out" in caplog.text
