"""A data set before anything is trained on it, as one HTML page: python -m training.eda data=folder data.root=PATH

The same functions, one after another: training/eda.ipynb.
"""

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import mlflow
import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from serving.model.pictures.decoding import Decoding
from training.config import hydra_command
from training.data.eda import figures, galleries
from training.data.eda.near_duplicates import contradictions, nearest_neighbours, pairs
from training.data.eda.statistics import PixelStatistics, pixel_statistics, training_pictures
from training.data.pictures import Pictures
from training.data.split import ImageData, load_data
from training.pages.page import render_page, write_whole
from training.pages.plots import svg
from training.settings import EdaSettings
from training.tracking import experiment_id, git_state, tell_page

log = logging.getLogger(__name__)

PAIRS = 20
DECODING = Decoding(shorter_side=256)  # a first look needs no more


def main(settings: EdaSettings) -> None:
    """Writes the page, its plots and tables; MLflow keeps a copy of all."""
    data = load_data(settings.data, settings.seed, DECODING)
    log.info("%s", data.table())
    training = training_pictures(data)
    pixels = {"training": pixel_statistics(training, "training"), "test": pixel_statistics(data.test, "test")}
    neighbours = nearest_neighbours(training, data.test, settings.near_duplicate)
    twice = contradictions(data)
    plots = {
        "balance": svg(figures.balance_figure(data)),
        "channels": svg(figures.channels_figure(pixels["training"], data.classes)),
        "brightness": svg(figures.brightness_figure(pixels["training"], training.labels, data.classes)),
        "similarity": svg(figures.similarity_figure(neighbours)),
    }
    sizes = training.sizes.min(axis=0), training.sizes.max(axis=0)
    page = render_page(
        "eda.html.jinja",
        plots,
        title=f"A first look at {Path(settings.data.root or data.name).name}",
        data=data,
        sizes=sizes,
        reduced=int(sizes[1].max()) > (DECODING.shorter_side or 0),
        shown=len(figures.shown_classes(len(data.classes))),
        samples=galleries.samples(training, data.classes, settings.seed),
        channels={name: (part.mean, part.std) for name, part in pixels.items()}
        | {"ImageNet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)},
        contradictions=twice,
        neighbours=neighbours,
        closest=galleries.pairs(neighbours, neighbours.order[:PAIRS], data.classes),
        threshold=galleries.pairs(neighbours, neighbours.around_threshold(PAIRS), data.classes),
    )
    files = {
        "eda.html": page,
        **{f"{name}.svg": plot.encode() for name, plot in plots.items()},
        "near_duplicates.csv": _csv(
            ("similarity", "test", "test_label", "train", "train_label"), pairs(neighbours, data.classes)
        ),
        "contradictions.csv": _csv(("group", "split", "label", "file"), twice),
        "classes.csv": _csv(
            ("class", "train", "validation", "test", "brightness"), _class_rows(data, training, pixels["training"])
        ),
    }
    for name, content in files.items():
        write_whole(settings.report / name, content)
    log.info("near-duplicates    %d of %d test pictures", len(neighbours.duplicates), len(data.test))
    log.info("two labels         %d pictures that are there more than once", len(twice))
    log.info("page: %s", settings.report / "eda.html")

    with mlflow.start_run(experiment_id=experiment_id(settings.mlflow_experiment), run_name=data.name) as run:
        tell_page(run)
        mlflow.set_tags({"data": data.name, "data_fingerprint": data.fingerprint, **git_state()})
        mlflow.log_metrics({"near_duplicates": len(neighbours.duplicates), "contradictions": len(twice)})
        for name in files:
            mlflow.log_artifact(str(settings.report / name))


def _class_rows(data: ImageData, training: Pictures, pixels: PixelStatistics) -> Iterable[tuple[object, ...]]:
    counts = [
        np.bincount(part.labels, minlength=len(data.classes)) for part in (data.train, data.validation, data.test)
    ]
    totals = np.bincount(training.labels, pixels.brightness, len(data.classes))
    means = totals / np.maximum(np.bincount(training.labels, minlength=len(data.classes)), 1)
    for index, name in enumerate(data.classes):
        yield name, *(int(count[index]) for count in counts), f"{means[index]:.4f}"


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue().encode()


if __name__ == "__main__":
    hydra_command(main, EdaSettings, "eda")
