"""The figures of a run and of its evaluation."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from training.quality.evaluation import CALIBRATION_BINS, Evaluation


def png(figure: Figure, dpi: int = 110) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def evaluation_figures(evaluation: Evaluation) -> dict[str, bytes]:
    """Each as a PNG file, by name."""
    return {"confusion": png(confusion_figure(evaluation)), "reliability": png(reliability_figure(evaluation))}


def confusion_figure(evaluation: Evaluation) -> Figure:
    """The confusion matrix, each row in shares of its class."""
    classes = evaluation.classes
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


def reliability_figure(evaluation: Evaluation) -> Figure:
    """How often the model is right (Guo et al. 2017) against how sure it is, and how often it is that sure."""
    confidence = evaluation.probabilities.max(axis=1)
    right = evaluation.probabilities.argmax(axis=1) == evaluation.pictures.labels
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


def learning_curves_figure(losses: Mapping[int, float], accuracies: Mapping[int, float]) -> Figure:
    """Training loss by step, and validation accuracy by epoch."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, history in ((left, losses), (right, accuracies)):
        axes.plot(list(history), list(history.values()), marker="o" if len(history) < 50 else None)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation accuracy")
    right.xaxis.get_major_locator().set_params(integer=True)
    return figure
