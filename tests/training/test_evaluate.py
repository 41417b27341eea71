"""python -m training.evaluate, and the page that it writes."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from tests.conftest import TINY, Trained, assert_user_error
from training import tracking
from training.config import compose_config
from training.data import load_data
from training.report import typical, worst

Run = Callable[..., CompletedProcess[str]]
DATA = ["data=digits", "data.test_limit=200"]


def test_the_champion_and_its_file_score_as_in_training(trained: Trained, run_module: Run, tmp_path: Path) -> None:
    accuracy = tracking.connect().get_run(trained.run_id).data.metrics["test_accuracy"]
    for number, model in enumerate(("models:/cifar10-classifier@champion", str(trained.onnx))):
        page = tmp_path / f"{number}.html"
        result = run_module("training.evaluate", f"model_uri='{model}'", f"report={page}", *DATA)
        assert result.returncode == 0, result.stderr
        assert re.search(rf"accuracy +{accuracy:.4f}", result.stdout), result.stdout
        html = page.read_text()
        for part in (model, f"{accuracy:.4f}", "Confusion matrix", "Reliability diagram", "are taken for"):
            assert part in html
        assert not re.search(r"(src|href)=.http", html), "the page needs nothing beside it"


def test_the_worst_are_the_surest_and_the_typical_the_most_frequent() -> None:
    pictures = load_data(compose_config(TINY).data, 1).test
    classes = [str(digit) for digit in range(10)]
    probabilities = np.full((len(pictures), 10), 0.01)
    probabilities[np.arange(len(pictures)), pictures.labels] = 0.91
    zeros = np.flatnonzero(pictures.labels == 0)[:3]
    (one,) = np.flatnonzero(pictures.labels == 1)[:1]
    for index, confidence in zip(zeros, (0.5, 0.7, 0.6), strict=True):  # zeros taken for eights
        probabilities[index, [0, 8]] = 0.1, confidence
    probabilities[one, [1, 7]] = 0.05, 0.9  # and a one for a seven
    assert [index for index, _ in worst(probabilities, pictures)] == [one, zeros[1], zeros[2], zeros[0]]
    chosen = typical(probabilities, pictures, classes)
    assert [index for index, _ in chosen] == [zeros[2], one]
    assert chosen[0][1] == f"3 of {(pictures.labels == 0).sum()} pictures of 0 are taken for 8"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=digits"], ["model_uri"]),
        (["model_uri=no/such.onnx", "data=digits"], ["no/such.onnx", "no such file"]),
        (["model_uri=models:/nobody/1", "data=digits"], ["models:/nobody/1", "not in the registry"]),
    ],
)
def test_a_model_that_is_not_there_is_named(
    arguments: list[str], words: list[str], run_module: Run, trained: Trained
) -> None:
    assert_user_error(run_module("training.evaluate", *arguments), *words)


def test_pictures_of_other_classes_are_refused(trained: Trained, image_folder: Path, run_module: Run) -> None:
    arguments = [f"model_uri={trained.onnx}", "data=folder", f"data.root={image_folder}"]
    assert_user_error(run_module("training.evaluate", *arguments), "knows the classes 0, 1", "green, red")
