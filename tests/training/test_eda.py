"""python -m training.eda, its page, the near-duplicates that it finds, and the notebook."""

import csv
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from serving.model.pictures.decoding import AS_SHOWN
from training import eda, tracking
from training.config import compose
from training.data.eda import galleries
from training.data.eda.near_duplicates import contradictions, nearest_neighbours, pairs
from training.data.eda.statistics import pixel_statistics, training_pictures
from training.data.split import ImageData, load_data
from training.settings import EdaSettings

NOTEBOOK = Path(__file__).parents[2] / "training" / "eda.ipynb"


def load(*overrides: str) -> ImageData:
    return load_data(compose(overrides).data, 42, AS_SHOWN)


def test_the_page_is_written_and_mlflow_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, composed = tmp_path / "report", compose(["data=digits"])
    common = {"data": composed.data, "seed": composed.seed, "state_dir": composed.state_dir}
    caplog.set_level(logging.INFO)
    eda.main(EdaSettings(**common, report=folder, near_duplicate=0.75, mlflow_experiment="eda"))
    assert f"page: {folder / 'eda.html'}" in caplog.text

    html = (folder / "eda.html").read_text()
    data = load("data=digits")
    for part in (
        f'<tr><th>train</th><td class="number">{len(data.train):,}</td>',
        f'<tr><th>test</th><td class="number">{len(data.test):,}</td>',
        "8 x 8",
        data.fingerprint[:16],
        "ImageNet",
    ):
        assert part in html, part
    assert not re.search(r"(src|href)=.(?!data:|#)", html), "the page needs nothing beside it"
    plots = {"balance.svg", "channels.svg", "brightness.svg", "similarity.svg"}
    assert html.count("<svg") == len(plots)
    assert html.count("data:image/png") == 10 * galleries.SAMPLES + 4 * eda.PAIRS
    with open(folder / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list("0123456789")
    assert sum(int(row[split]) for row in rows for split in ("train", "validation", "test")) == 1797

    experiment = tracking.connect().get_experiment_by_name("eda")
    assert experiment
    (run,) = tracking.connect().search_runs([experiment.experiment_id])
    assert run.data.tags["data"] == "digits"
    assert run.data.tags["data_fingerprint"] == data.fingerprint
    kept = {file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
    assert kept == {"eda.html", "near_duplicates.csv", "contradictions.csv", "classes.csv", *plots}
    assert kept == {path.name for path in folder.iterdir()}


def test_the_statistics_are_those_of_all_pixels(image_folder: Path) -> None:
    pictures = load("data=folder", f"data.root={image_folder}").test
    statistics = pixel_statistics(pictures, "test")
    pixels = np.concatenate([pictures[index].reshape(-1, 3) for index in range(len(pictures))]) / 255
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=0))
    np.testing.assert_allclose(statistics.std, pixels.std(axis=0))
    luma = [np.asarray(Image.fromarray(pictures[index]).convert("L")).mean() / 255 for index in range(len(pictures))]
    np.testing.assert_allclose(statistics.brightness, luma, atol=0.005)
    green = np.concatenate([pictures[index] for index in np.flatnonzero(pictures.labels == 0)])
    np.testing.assert_array_equal(statistics.histograms[0, 1], np.bincount(green[..., 1].ravel(), minlength=256))


def test_no_training_picture_is_left_out_of_the_search() -> None:
    data = load("data=digits")
    assert sorted(training_pictures(data).names) == sorted([*data.train.names, *data.validation.names])


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Parts of two real photographs, no two the same, as a folder of two classes."""

    def parts() -> Iterator[Image.Image]:
        for photograph in load_sample_images().images:
            for top, left in np.ndindex(6, 10):
                yield Image.fromarray(photograph[top * 64 : top * 64 + 64, left * 64 : left * 64 + 64])

    for index, part in enumerate(parts()):
        split, label = "test" if index % 4 == 0 else "train", "temple" if index < 60 else "flower"
        folder = tmp_path / "photographs" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        part.save(folder / f"{index:03d}.png")
    return tmp_path / "photographs"


def test_a_planted_copy_is_found_and_nothing_else(photographs: Path, tmp_path: Path) -> None:
    original = photographs / "train" / "temple" / "037.png"
    with Image.open(original) as picture:
        copy = ImageEnhance.Brightness(ImageEnhance.Color(picture).enhance(0.2)).enhance(0.8).resize((50, 50))
    copy.save(photographs / "test" / "flower" / "copy.jpg", quality=70)
    Image.new("RGB", (40, 40), "white").save(photographs / "test" / "flower" / "blank.png")

    data = load("data=folder", f"data.root={photographs}")
    neighbours = nearest_neighbours(training_pictures(data), data.test, 0.75)
    assert neighbours.contradictions == 1
    ((_, *pair),) = pairs(neighbours, data.classes)
    assert pair == ["test/flower/copy.jpg", "flower", "train/temple/037.png", "temple"]


def test_identical_pictures_with_two_labels_are_named_and_no_others(photographs: Path) -> None:
    original = photographs / "train" / "temple" / "037.png"
    for name in ("train/flower/copy.png", "test/flower/again.png", "train/temple/same_label.png"):
        shutil.copy(original, photographs / name)
    shutil.copy(photographs / "train" / "flower" / "061.png", photographs / "train" / "flower" / "twice.png")
    found = contradictions(load("data=folder", f"data.root={photographs}"))
    assert {(group, label, name) for group, _, label, name in found} == {
        (1, "temple", "train/temple/037.png"),
        (1, "temple", "train/temple/same_label.png"),
        (1, "flower", "train/flower/copy.png"),
        (1, "flower", "test/flower/again.png"),
    }
    assert {split for _, split, _, name in found if name.startswith("test/")} == {"test"}


def test_the_nearest_are_the_nearest_across_the_parts_that_are_compared() -> None:
    """The training digits, more than one matrix product takes, are each nearest to themselves."""
    training = training_pictures(load("data=digits"))
    neighbours = nearest_neighbours(training, training, 0.75)
    np.testing.assert_array_equal(neighbours.nearest, np.arange(len(training)))
    np.testing.assert_allclose(neighbours.similarity, 1, atol=1e-5)


@pytest.mark.slow
def test_cifar10_is_as_published(cifar10_images: str) -> None:
    data = load("data=folder", f"data.root={cifar10_images}")
    training = training_pictures(data)
    pixels = pixel_statistics(training, "training")
    # The original files'; these pictures went through JPEG, which smooths.
    np.testing.assert_allclose(pixels.mean, (0.4914, 0.4822, 0.4465), atol=0.001)
    np.testing.assert_allclose(pixels.std, (0.2470, 0.2435, 0.2616), atol=0.005)
    neighbours = nearest_neighbours(training, data.test, 0.75)
    # Barz and Denzler found 3.3 %, with copies that were moved or cropped and copies within the test pictures.
    assert 0.02 < len(neighbours.duplicates) / len(data.test) < 0.033
    # Of pictures that merely look alike, far more would have two labels.
    assert neighbours.contradictions < 0.05 * len(neighbours.duplicates)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "the notebook is kept without outputs"
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    parameters.source += '\noverrides = ["data=digits"]'
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    figures = [cell for cell in code if "_figure(" in cell.source]
    assert figures
    for cell in figures:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
