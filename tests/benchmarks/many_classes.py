"""Plots, report and first look of data sets with many classes: seconds, and the peak of the memory that they add.

python -m tests.benchmarks.many_classes [CLASSES ...]
"""

import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from training.data.eda import figures, galleries
from training.data.eda.near_duplicates import nearest_neighbours
from training.data.eda.statistics import pixel_statistics
from training.data.pictures import Pictures
from training.data.split import ImageData
from training.pages.plots import svg
from training.quality.evaluation import Evaluation, evaluate
from training.quality.figures import confusion_csv, evaluation_plots
from training.quality.report import render_report

PICTURES_OF_A_CLASS = 20
SIDE = 32


def pictures(classes: int) -> Pictures:
    """Noise."""
    random = np.random.default_rng(0)
    count = classes * PICTURES_OF_A_CLASS
    return Pictures(
        pixels=random.integers(0, 256, count * SIDE * SIDE * 3, np.uint8),
        offsets=np.arange(count) * SIDE * SIDE * 3,
        sizes=np.full((count, 2), SIDE, np.int32),
        labels=np.arange(count) % classes,
        names=np.arange(count).astype(str),
        hashes=np.arange(count).astype(np.uint64),
    )


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and MB of a piece of work, in a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        work()
        took = time.perf_counter() - start
        added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writer, f"{took} {added / 1024}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        seconds, megabytes = map(float, answer.read().split())
    os.wait()
    return seconds, megabytes


def report(evaluation: Evaluation, data: ImageData) -> int:
    confusion_csv(evaluation)
    return len(render_report("title", "subtitle", evaluation, data, evaluation_plots(evaluation), []))


def first_look(data: ImageData) -> None:
    pixels = pixel_statistics(data.train, "training")
    svg(figures.balance_figure(data))
    svg(figures.channels_figure(pixels, data.classes))
    svg(figures.brightness_figure(pixels, data.train.labels, data.classes))
    galleries.samples(data.train, data.classes, 0)
    neighbours = nearest_neighbours(data.train, data.test, 0.75)
    galleries.pairs(neighbours, neighbours.order[:20], data.classes)


def row(count: int) -> list[str]:
    names = [f"class {index}" for index in range(count)]
    parts = pictures(count)
    origins = dict.fromkeys(("train", "validation", "test"), "")
    data = ImageData("many", names, parts, parts, parts, "0" * 64, origins, [])
    probabilities = np.random.default_rng(1).dirichlet(np.full(count, 0.05), len(parts)).astype(np.float32)
    evaluation = evaluate(probabilities, parts, names)
    cells = [str(count)]
    for work in (lambda: report(evaluation, data), lambda: first_look(data)):
        seconds, megabytes = measured(work)
        cells += [f"{seconds:.1f} s", f"{megabytes:.0f} MB"]
    return [*cells, f"{report(evaluation, data) / 1e6:.1f} MB"]


def main(counts: list[int]) -> None:
    table = Table("classes", "report", "", "first look", "", "report's size")
    for count in counts:
        table.add_row(*row(count))
    Console().print(table)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [10, 100, 300, 1000])
