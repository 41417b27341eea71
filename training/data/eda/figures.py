"""The figures of the EDA page."""

from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from training.data.eda.near_duplicates import Neighbours
from training.data.eda.statistics import PixelStatistics
from training.data.pictures import Pictures
from training.data.split import ImageData

SAMPLES = 12
TILE = 64
INK, QUIET, BLUE, LIGHT_BLUE, AMBER, RED = "#333333", "#9aa5b1", "#8fb0d6", "#c8d8ea", "#eebf6d", "#c8553d"
RGB = (RED, "#588b5a", "#4a6fa5")
STYLE = str(Path(__file__).with_name("figures.mplstyle"))


@style.context(STYLE)
def balance_figure(data: ImageData) -> Figure:
    """How many pictures each class has in each split."""
    figure = Figure(figsize=(9, 0.8 + 0.27 * len(data.classes)), layout="constrained")
    axes = figure.subplots()
    splits = {"training": (data.train, BLUE), "validation": (data.validation, LIGHT_BLUE), "test": (data.test, AMBER)}
    counts = {name: np.bincount(pictures.labels, minlength=len(data.classes)) for name, (pictures, _) in splits.items()}
    start = np.zeros(len(data.classes), np.int64)
    for name, (pictures, color) in splits.items():
        bars = axes.barh(
            range(len(data.classes)), counts[name], left=start, color=color, label=f"{name}, {len(pictures):,}"
        )
        start += counts[name]
    texts = [" + ".join(f"{count:,}" for count in row) for row in zip(*counts.values(), strict=True)]
    axes.bar_label(bars, texts, padding=6, fontsize=7)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    axes.invert_yaxis()
    axes.set_yticks(range(len(data.classes)), data.classes)
    axes.set(xlabel="pictures", xlim=(0, 1.15 * start.max()))
    axes.tick_params(axis="y", length=0)
    return figure


@style.context(STYLE)
def samples_figure(pictures: Pictures, classes: list[str], seed: int) -> Figure:
    """A row of pictures for each class, drawn at random."""
    random = np.random.default_rng(seed)
    sheet = np.full((len(classes) * (TILE + 4), SAMPLES * (TILE + 4), 3), 255, np.uint8)
    for row in range(len(classes)):
        chosen = random.permutation(np.flatnonzero(pictures.labels == row))[:SAMPLES]
        for column, index in enumerate(chosen):
            top, left = row * (TILE + 4), column * (TILE + 4)
            sheet[top : top + TILE, left : left + TILE] = _tile(pictures[index])
    figure = Figure(figsize=(9, 0.65 * len(classes)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet)
    axes.set_yticks(np.arange(len(classes)) * (TILE + 4) + TILE / 2, classes)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _tile(picture: np.ndarray) -> np.ndarray:
    """A picture of any size in the middle of a white square: uint8 (TILE, TILE, 3)."""
    # Small pictures keep their hard edges: what is there is what a model gets.
    method = Image.Resampling.NEAREST if max(picture.shape[:2]) < TILE else Image.Resampling.BOX
    return np.asarray(ImageOps.pad(Image.fromarray(picture), (TILE, TILE), method, color="white"))


@style.context(STYLE)
def channels_figure(pixels: PixelStatistics, classes: list[str]) -> Figure:
    """How often each value occurs in each channel, for every class; for all classes in grey."""
    columns = min(5, len(classes))
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(9, 0.4 + 1.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    everything = pixels.histograms.sum(axis=(0, 1)) / pixels.histograms.sum()
    # The ends, where pixels are clipped, would dwarf all else.
    top = 1.6 * everything[1:-1].max()
    for axes in grid.flat[len(classes) :]:
        axes.set_axis_off()
    for axes, name, histogram in zip(grid.flat, classes, pixels.histograms, strict=False):
        axes.fill_between(np.arange(256), everything, color="#e6e9ed")
        for counts, color in zip(histogram, RGB, strict=True):
            axes.plot(counts / max(counts.sum(), 1), color=color, linewidth=1)
        axes.set(title=name, yticks=[], xticks=[0, 128, 255], xlim=(0, 255), ylim=(0, top))
        axes.spines["left"].set_visible(False)
    return figure


@style.context(STYLE)
def brightness_figure(pixels: PixelStatistics, labels: np.ndarray, classes: list[str]) -> Figure:
    """How bright the pictures of each class are, the darkest class first."""
    # A class may have no pictures left where a limit leaves some out.
    groups = {classes[index]: pixels.brightness[labels == index] for index in np.unique(labels)}
    medians = {name: float(np.median(group)) for name, group in groups.items()}
    order = sorted(medians, key=medians.__getitem__)
    figure = Figure(figsize=(9, 0.8 + 0.4 * len(order)), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, 1, 51)
    curves = np.stack([np.histogram(groups[name], bins, density=True)[0] for name in order])
    for row, (name, curve) in enumerate(zip(order, curves, strict=True)):
        axes.fill_between((bins[:-1] + bins[1:]) / 2, row - 0.95 * curve / curves.max(), row, color=BLUE)
        axes.vlines(medians[name], row - 0.95, row, color=INK, linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel="mean brightness of a picture; the mark is the median", xlim=(0, 1), ylim=(len(order) - 0.9, -1))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


@style.context(STYLE)
def similarity_figure(neighbours: Neighbours) -> Figure:
    """How like each test picture its nearest training picture is, and where near-duplicates begin."""
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.subplots()
    near = neighbours.similarity >= neighbours.threshold
    similarity = neighbours.similarity.clip(0, 1)
    groups = [similarity[~near], similarity[near]]
    labels = ["another picture", "near-duplicate"]
    axes.hist(
        groups, np.linspace(0, 1, 41).tolist(), histtype="barstacked", color=[BLUE, AMBER], label=labels, log=True
    )
    axes.legend(loc="upper left")
    axes.set(xlabel="correlation with the nearest training picture", ylabel="test pictures", xlim=(0, 1))
    return figure


@style.context(STYLE)
def pairs_figure(neighbours: Neighbours, indices: np.ndarray, classes: list[str]) -> Figure:
    """Pairs of a training picture (left) and a test picture (right), with their labels and how alike they are."""
    columns = 5
    rows = max(-(-len(indices) // columns), 1)
    figure = Figure(figsize=(9, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, indices, strict=False):
        twin = neighbours.nearest[index]
        gap = np.full((TILE, 4, 3), 255, np.uint8)
        axes.imshow(np.hstack([_tile(neighbours.training[twin]), gap, _tile(neighbours.test[index])]))
        # One label where they agree.
        labels = dict.fromkeys((classes[neighbours.training.labels[twin]], classes[neighbours.test.labels[index]]))
        color = INK if len(labels) == 1 else RED
        axes.set_title(f"{neighbours.similarity[index]:.2f}  {' | '.join(labels)}", fontsize=8, color=color)
    return figure
