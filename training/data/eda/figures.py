"""The plots of the EDA page."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from training.data.eda.near_duplicates import Neighbours
from training.data.eda.statistics import PixelStatistics
from training.data.split import ImageData
from training.pages.plots import COLORS, STYLE, shortened

SHOWN_CLASSES = 30
RGB = ("#c8553d", "#588b5a", "#4a6fa5")
SPLIT_COLORS = {"train": COLORS["accent"], "validation": COLORS["rest"], "test": "#eebf6d"}


def shown_classes(count: int) -> list[int]:
    """The indices of all classes, or of thirty that are evenly spread over their order."""
    return np.unique(np.linspace(0, count - 1, min(count, SHOWN_CLASSES)).round().astype(int)).tolist()


@rc_context(STYLE)
def balance_figure(data: ImageData) -> Figure:
    """How many pictures each class has in each split; of many classes by their rank."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    count = len(data.classes)
    counts = {name: np.bincount(pictures.labels, minlength=count) for name, pictures in splits.items()}
    labels = {name: f"{name}, {len(pictures):,}" for name, pictures in splits.items()}
    if count > SHOWN_CLASSES:
        return _ranked(data, counts, labels)
    figure = Figure(figsize=(8, 0.9 + 0.3 * count), layout="constrained")
    axes = figure.subplots()
    start = np.zeros(count, np.int64)
    for name, values in counts.items():
        bars = axes.barh(range(count), values, left=start, color=SPLIT_COLORS[name], label=labels[name])
        start += values
    texts = [" + ".join(f"{value:,}" for value in row) for row in zip(*counts.values(), strict=True)]
    axes.bar_label(bars, texts, padding=6, fontsize=8)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    axes.invert_yaxis()
    axes.set_yticks(range(count), [shortened(name) for name in data.classes])
    axes.set(xlabel="pictures", xlim=(0, 1.2 * start.max()))
    axes.tick_params(axis="y", length=0)
    return figure


def _ranked(data: ImageData, counts: dict[str, np.ndarray], labels: dict[str, str]) -> Figure:
    total = np.sum(list(counts.values()), axis=0)
    order = np.argsort(-total, kind="stable")
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.stackplot(
        np.arange(1, len(order) + 1),
        [values[order] for values in counts.values()],
        labels=list(labels.values()),
        colors=list(SPLIT_COLORS.values()),
        step="mid",
    )
    largest, smallest = (shortened(data.classes[index]) for index in (order[0], order[-1]))
    axes.set_title(f"largest: {largest}, {total[order[0]]:,}; smallest: {smallest}, {total[order[-1]]:,}")
    axes.legend(loc="upper right", ncols=3)
    axes.set(xlabel="classes by their size", ylabel="pictures", xlim=(1, len(order)), ylim=(0, 1.3 * total.max()))
    return figure


@rc_context(STYLE)
def channels_figure(pixels: PixelStatistics, classes: list[str]) -> Figure:
    """How often each value occurs in each channel, for the shown classes; for all classes in grey."""
    shown = shown_classes(len(classes))
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(9, 0.4 + 1.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    everything = pixels.histograms.sum(axis=(0, 1)) / pixels.histograms.sum()
    # The ends, where pixels are clipped, would dwarf all else.
    top = 1.6 * everything[1:-1].max()
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, shown, strict=False):
        axes.fill_between(np.arange(256), everything, color=COLORS["track"])
        for counts, color in zip(pixels.histograms[index], RGB, strict=True):
            axes.plot(counts / max(counts.sum(), 1), color=color, linewidth=1)
        axes.set(title=shortened(classes[index]), yticks=[], xticks=[0, 128, 255], xlim=(0, 255), ylim=(0, top))
        axes.spines["left"].set_visible(False)
    return figure


@rc_context(STYLE)
def brightness_figure(pixels: PixelStatistics, labels: np.ndarray, classes: list[str]) -> Figure:
    """How bright the pictures of the shown classes are, the darkest class first."""
    # A class may have no pictures left where a limit leaves some out.
    shown = np.intersect1d(shown_classes(len(classes)), np.unique(labels))
    groups = {int(index): pixels.brightness[labels == index] for index in shown}
    medians = {index: float(np.median(group)) for index, group in groups.items()}
    order = sorted(medians, key=medians.__getitem__)
    figure = Figure(figsize=(8, 0.8 + 0.38 * len(order)), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, 1, 51)
    curves = np.stack([np.histogram(groups[index], bins, density=True)[0] for index in order])
    for row, (index, curve) in enumerate(zip(order, curves, strict=True)):
        axes.fill_between((bins[:-1] + bins[1:]) / 2, row - 0.95 * curve / curves.max(), row, color=COLORS["rest"])
        axes.vlines(medians[index], row - 0.95, row, color=COLORS["accent"], linewidth=1.5)
    axes.set_yticks(range(len(order)), [shortened(classes[index]) for index in order])
    axes.set(xlabel="mean brightness of a picture; the mark is the median", xlim=(0, 1), ylim=(len(order) - 0.9, -1))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


@rc_context(STYLE)
def similarity_figure(neighbours: Neighbours) -> Figure:
    """How like each test picture its nearest training picture is, and where near-duplicates begin."""
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots()
    near = neighbours.similarity >= neighbours.threshold
    similarity = neighbours.similarity.clip(0, 1)
    axes.hist(
        [similarity[~near], similarity[near]],
        np.linspace(0, 1, 41).tolist(),
        histtype="barstacked",
        color=[COLORS["rest"], COLORS["accent"]],
        label=["another picture", "near-duplicate"],
        log=True,
    )
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left")
    axes.set(xlabel="correlation with the nearest training picture", ylabel="test pictures", xlim=(0, 1))
    return figure
