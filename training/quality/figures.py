"""The plots of a run and of its evaluation, each as an SVG file."""

import csv
import io
import logging
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from training.pages.plots import COLORS, STYLE, shortened, svg
from training.quality.evaluation import CALIBRATION_BINS, Evaluation

log = logging.getLogger(__name__)

LARGEST_MATRIX = 30  # classes; the most frequent confusions of more are easier to read
PAIRS = 20


def evaluation_plots(evaluation: Evaluation) -> dict[str, str]:
    """By name; one that fails is left out, and said: a plot is no reason to lose a run."""
    draw: Callable[[Evaluation], Figure]
    draw = confusion_figure if shows_whole_matrix(evaluation) else confusions_figure
    return plots({"confusion": lambda: draw(evaluation), "reliability": lambda: reliability_figure(evaluation)})


def plots(figures: Mapping[str, Callable[[], Figure]]) -> dict[str, str]:
    """Draws figures as SVG files, by name; the ones that fail are left out, and said."""
    drawn = {}
    for name, figure in figures.items():
        try:
            with rc_context(STYLE):
                drawn[name] = svg(figure())
        except Exception:
            log.exception("the plot %s is left out", name)
    return drawn


def shows_whole_matrix(evaluation: Evaluation) -> bool:
    return len(evaluation.classes) <= LARGEST_MATRIX


def confusion_figure(evaluation: Evaluation) -> Figure:
    """The confusion matrix, each row coloured by the shares of its class."""
    classes = [shortened(name) for name in evaluation.classes]
    confusion = evaluation.confusion
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(3.2, 0.42 * len(classes))
    figure = Figure(figsize=(side + 1.2, side + 0.6), layout="constrained")
    axes = figure.subplots()
    for row, column in np.argwhere(confusion):
        strength = float(share[row, column])
        axes.fill_between(
            [column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=COLORS["accent"], alpha=strength, lw=0
        )
        color = COLORS["card"] if strength > 0.5 else COLORS["ink"]
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="answer", ylabel="true class", xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def confusions(evaluation: Evaluation) -> list[tuple[int, int, int]]:
    """The most frequent confusions: true class, answer, number of pictures."""
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(true), int(answer), int(wrong[true, answer])) for true, answer in pairs if wrong[true, answer]]


def confusions_figure(evaluation: Evaluation) -> Figure:
    """The most frequent confusions, as shares of their true class."""
    pairs = confusions(evaluation)
    totals = evaluation.confusion.sum(axis=1)
    names = [
        f"{shortened(evaluation.classes[true])} → {shortened(evaluation.classes[answer])}" for true, answer, _ in pairs
    ]
    shares = [count / totals[true] for true, _, count in pairs]
    figure = Figure(figsize=(6, 0.9 + 0.27 * max(len(pairs), 1)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(pairs)), shares, color=COLORS["accent"])
    axes.bar_label(bars, [f"{count} of {totals[true]}" for true, _, count in pairs], padding=4, fontsize=8)
    axes.set_yticks(range(len(pairs)), names)
    axes.set(xlabel="share of the true class", xlim=(0, 1.25 * max(shares, default=1)))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    return figure


def confusion_csv(evaluation: Evaluation) -> str:
    """The whole matrix: a row a true class, a column an answer."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("true class", *evaluation.classes))
    rows.writerows((name, *row) for name, row in zip(evaluation.classes, evaluation.confusion.tolist(), strict=True))
    return file.getvalue()


def reliability_figure(evaluation: Evaluation) -> Figure:
    """How often the model is right (Guo et al. 2017) against how sure it is, and how often it is that sure."""
    confidence = evaluation.probabilities.max(axis=1)
    right = evaluation.probabilities.argmax(axis=1) == evaluation.pictures.labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    accuracy = np.bincount(bins, right, CALIBRATION_BINS) / np.maximum(count, 1)
    middle = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(middle, accuracy, 0.9 / CALIBRATION_BINS, color=COLORS["accent"])
    above.plot([0, 1], [0, 1], color=COLORS["ink"], linewidth=1, linestyle="dashed")
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    below.bar(middle, count, 0.9 / CALIBRATION_BINS, color=COLORS["rest"])
    below.set(xlabel="confidence", ylabel="pictures")
    return figure


def learning_curves_figure(losses: Mapping[int, float], accuracies: Mapping[int, float]) -> Figure:
    """Training loss by step, and validation accuracy by epoch."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, history in ((left, losses), (right, accuracies)):
        marker = "o" if len(history) < 50 else None
        axes.plot(list(history), list(history.values()), marker=marker, color=COLORS["accent"], linewidth=1.5)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation accuracy")
    right.xaxis.get_major_locator().set_params(integer=True)
    return figure
