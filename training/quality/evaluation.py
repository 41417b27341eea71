"""How good a classifier is on pictures it has not seen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from torch import nn
from torchmetrics.functional import calibration_error
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_stat_scores

from training.data.pictures import Pictures
from training.progress import progress

CALIBRATION_BINS = 15

# uint8 (N, H, W, 3) -> float32 (N, classes): what a PyTorch model and an ONNX session have in common.
Classify = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    pictures: Pictures  # N of them
    classes: list[str]
    probabilities: np.ndarray  # float32 (N, classes)
    metrics: dict[str, float]  # in [0, 1]: accuracy and the ends of its 95 % interval, macro precision, recall and F1
    # of the classes that have pictures, expected calibration error
    per_class: list[dict[str, str | float]]  # class, precision, recall, F1, number of pictures
    confusion: np.ndarray  # int64 (classes, classes), true by predicted


@contextmanager
def whole_float32() -> Iterator[None]:
    """Keeps a GPU from multiplying in TF32, which has 10 bits of float32's 23 and is PyTorch's own choice in cuDNN."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def torch_logits(model: nn.Module) -> Classify:
    """A PyTorch classifier as a function of arrays, on the device that it is on: without gradients, before the softmax.

    Whole float32, whatever it was trained in: the answers are compared with those of its ONNX file, and its temperature
    is fitted to them.
    """

    @torch.inference_mode()
    def logits(images: np.ndarray) -> np.ndarray:
        model.eval()
        device = next(model.parameters()).device
        with whole_float32():
            answer: np.ndarray = model(torch.from_numpy(images).to(device)).cpu().numpy()
        return answer

    return logits


def torch_classify(model: nn.Module) -> Classify:
    """The same with the softmax: what is served."""
    logits = torch_logits(model)
    return lambda images: softmax(logits(images), axis=1)


def predict(classify: Classify, pictures: Pictures, what: str, batch_size: int) -> np.ndarray:
    """The answers for all pictures in their order, float32 (N, classes); `what` names the work for the progress."""
    answers: dict[int, np.ndarray] = {}
    for indices, images in progress(pictures.batches(batch_size), what):
        answers.update(zip(indices, classify(images), strict=True))
    return np.stack([answers[index] for index in range(len(pictures))])


def evaluate(probabilities: np.ndarray, pictures: Pictures, classes: list[str]) -> Evaluation:
    """Compares probabilities (N, classes) with the labels of N pictures."""
    predicted, target = torch.from_numpy(probabilities), torch.from_numpy(pictures.labels)
    count = len(classes)
    # columns: true positives, false positives, true negatives, false negatives, support
    scores = multiclass_stat_scores(predicted, target, count, average=None).double()
    true_positive, false_positive, _, false_negative, support = scores.T
    precision = (true_positive / (true_positive + false_positive)).nan_to_num()
    recall = (true_positive / (true_positive + false_negative)).nan_to_num()
    f1 = (2 * true_positive / (2 * true_positive + false_positive + false_negative)).nan_to_num()
    there = support > 0
    low, high = accuracy_interval(int(true_positive.sum()), int(support.sum()))
    metrics = {
        "accuracy": float(true_positive.sum() / support.sum()),
        "accuracy_low": low,
        "accuracy_high": high,
        "precision": float(precision[there].mean()),
        "recall": float(recall[there].mean()),
        "f1": float(f1[there].mean()),
        "calibration_error": expected_calibration_error(probabilities, pictures.labels),
    }
    columns = zip(classes, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    per_class: list[dict[str, str | float]] = [
        {"class": name, "precision": p, "recall": r, "f1": f, "pictures": n} for name, p, r, f, n in columns
    ]
    confusion = multiclass_confusion_matrix(predicted, target, count).numpy()
    return Evaluation(pictures, classes, probabilities, metrics, per_class, confusion)


def accuracy_interval(right: int, pictures: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927)."""
    interval = binomtest(right, pictures).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How far confidence and accuracy lie apart on average (Naeini et al. 2015), in [0, 1]."""
    predicted, target = torch.from_numpy(probabilities), torch.from_numpy(labels)
    classes = probabilities.shape[1]
    return float(calibration_error(predicted, target, "multiclass", n_bins=CALIBRATION_BINS, num_classes=classes))
