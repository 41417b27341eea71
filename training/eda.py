"""A data set before anything is trained on it, as one HTML page: python -m training.eda data=folder data.root=PATH

The same functions, one after another: training/eda.ipynb.
"""

import logging
from pathlib import Path

import mlflow
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from training.config import hydra_command
from training.data.eda import figures
from training.data.eda.near_duplicates import nearest_neighbours, write_pairs
from training.data.eda.statistics import pixel_statistics, training_pictures
from training.data.split import load_data
from training.quality.figures import png
from training.quality.report import render_page, write_whole
from training.settings import EdaSettings
from training.tracking import experiment_id, git_state

log = logging.getLogger(__name__)

PAIRS = 20
DPI = 200


def main(settings: EdaSettings) -> None:
    """Writes the page, its figures as PNGs and the list of near-duplicates; MLflow keeps a copy of all."""
    data = load_data(settings.data, settings.seed)
    training = training_pictures(data)
    pixels = {"training": pixel_statistics(training, "training"), "test": pixel_statistics(data.test, "test")}
    neighbours = nearest_neighbours(training, data.test, settings.near_duplicate)
    drawn = {
        "balance": figures.balance_figure(data),
        "samples": figures.samples_figure(training, data.classes, settings.seed),
        "channels": figures.channels_figure(pixels["training"], data.classes),
        "brightness": figures.brightness_figure(pixels["training"], training.labels, data.classes),
        "similarity": figures.similarity_figure(neighbours),
        "closest": figures.pairs_figure(neighbours, neighbours.order[:PAIRS], data.classes),
        "threshold": figures.pairs_figure(neighbours, neighbours.around_threshold(PAIRS), data.classes),
    }

    folder = settings.report
    pngs = {name: png(figure, DPI) for name, figure in drawn.items()}
    for name, content in pngs.items():
        write_whole(folder / f"{name}.png", content)
    write_pairs(folder / "near_duplicates.csv", neighbours, data.classes)
    page = render_page(
        "eda.html.jinja",
        pngs,
        title=f"A first look at {Path(settings.data.root or data.name).name}",
        data=data,
        sizes=(training.sizes.min(axis=0), training.sizes.max(axis=0)),
        channels={name: (part.mean, part.std) for name, part in pixels.items()}
        | {"ImageNet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)},
        neighbours=neighbours,
    )
    write_whole(folder / "eda.html", page)
    log.info("near-duplicates    %d of %d test pictures", len(neighbours.duplicates), len(data.test))
    log.info("page: %s", folder / "eda.html")

    with mlflow.start_run(experiment_id=experiment_id(settings.mlflow_experiment), run_name=data.name):
        mlflow.set_tags({"data": data.name, "data_fingerprint": data.fingerprint, **git_state()})
        mlflow.log_metric("near_duplicates", len(neighbours.duplicates))
        for file in ("eda.html", "near_duplicates.csv", *(f"{name}.png" for name in pngs)):
            mlflow.log_artifact(str(folder / file))


if __name__ == "__main__":
    hydra_command(main, EdaSettings, "eda")
