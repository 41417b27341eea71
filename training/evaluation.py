"""How good a classifier is on pictures it has not seen: metrics, confusion, calibration, the misclassified."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import softmax
from torch import nn
from torchmetrics.functional import calibration_error
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_stat_scores

from training.data import Pictures
from training.progress import progress

BATCH_SIZE = 64
CALIBRATION_BINS = 15

# uint8 (N, H, W, 3) -> float32 (N, classes): what a PyTorch model and an ONNX session have in common.
Classify = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    metrics: accuracy, macro precision, recall and F1, and the expected calibration error, all in [0, 1].
    per_class: a row a class with precision, recall, F1 and the number of its pictures.
    confusion: int64 (classes, classes), true by predicted.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, str | float]]
    confusion: np.ndarray


def torch_logits(model: nn.Module) -> Classify:
    """A PyTorch classifier as a function of arrays: float32, without gradients, before the softmax."""

    @torch.inference_mode()
    def logits(images: np.ndarray) -> np.ndarray:
        model.eval()
        device = next(model.parameters()).device
        answer: np.ndarray = model(torch.tensor(images, device=device)).cpu().numpy()
        return answer

    return logits


def torch_classify(model: nn.Module) -> Classify:
    """The same with the softmax: what is served."""
    logits = torch_logits(model)
    return lambda images: softmax(logits(images), axis=1)


def predict(classify: Classify, pictures: Pictures, what: str) -> np.ndarray:
    """The probabilities of every picture in its place, float32 (N, classes)."""
    answers: dict[int, np.ndarray] = {}
    total = -(-len(pictures) // BATCH_SIZE)
    for indices, images in progress(pictures.batches(BATCH_SIZE), what, total):
        answers.update(zip(indices, classify(images), strict=True))
    return np.stack([answers[index] for index in range(len(pictures))])


def evaluate(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> Evaluation:
    """Compares probabilities (N, classes) with labels (N,)."""
    predicted, target = torch.from_numpy(probabilities), torch.from_numpy(labels)
    count = len(classes)
    # columns: true positives, false positives, true negatives, false negatives, support
    scores = multiclass_stat_scores(predicted, target, count, average=None).double()
    true_positive, false_positive, _, false_negative, support = scores.T
    precision = (true_positive / (true_positive + false_positive)).nan_to_num()
    recall = (true_positive / (true_positive + false_negative)).nan_to_num()
    f1 = (2 * true_positive / (2 * true_positive + false_positive + false_negative)).nan_to_num()
    metrics = {
        "accuracy": float(true_positive.sum() / support.sum()),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
        "calibration_error": expected_calibration_error(probabilities, labels),
    }
    columns = zip(classes, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    per_class: list[dict[str, str | float]] = [
        {"class": name, "precision": p, "recall": r, "f1": f, "pictures": n} for name, p, r, f, n in columns
    ]
    return Evaluation(metrics, per_class, multiclass_confusion_matrix(predicted, target, count).numpy())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How far confidence and accuracy lie apart on average (Naeini et al. 2015), in [0, 1]."""
    predicted, target = torch.from_numpy(probabilities), torch.from_numpy(labels)
    classes = probabilities.shape[1]
    return float(calibration_error(predicted, target, "multiclass", n_bins=CALIBRATION_BINS, num_classes=classes))


def confusion_figure(evaluation: Evaluation, classes: list[str]) -> Figure:
    """The confusion matrix, each row in shares of its class."""
    share = evaluation.confusion / np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.7 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(share.shape):
        color = "white" if share[row, column] > 0.5 else "black"
        count = evaluation.confusion[row, column]
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {evaluation.metrics['accuracy']:.2%}")
    return figure


def reliability_figure(probabilities: np.ndarray, labels: np.ndarray) -> Figure:
    """How often the model is right (Guo et al. 2017) against how sure it is, and how often it is that sure."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    accuracy = np.bincount(bins, right, CALIBRATION_BINS) / np.maximum(count, 1)
    middle = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    figure = Figure(figsize=(6, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(middle, accuracy, 0.9 / CALIBRATION_BINS)
    above.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="dashed")
    above.set(ylabel="share that is right", title="reliability", xlim=(0, 1), ylim=(0, 1))
    below.bar(middle, count, 0.9 / CALIBRATION_BINS, color="grey")
    below.set(xlabel="confidence", ylabel="pictures")
    return figure
