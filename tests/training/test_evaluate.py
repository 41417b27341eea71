"""The report on any model."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.model.errors import UserError
from serving.model.predictor import Predictor
from serving.model.registry import champion_uri
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import Trained
from training import tracking
from training.config import compose
from training.data.split import load_data
from training.evaluate import main
from training.settings import EvaluateSettings


def settings(model: str, report: Path, *overrides: str) -> EvaluateSettings:
    composed = compose([*overrides])
    shared = {name: getattr(composed, name) for name in ("data", "seed", "state_dir", "evaluation_batch_size")}
    return EvaluateSettings(model_uri=model, report=report, **shared)


def test_the_champion_and_its_file_score_as_in_training(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accuracy = tracking.connect().get_run(trained.run_id).data.metrics["test_accuracy"]
    caplog.set_level(logging.INFO)
    for number, model in enumerate((champion_uri(), str(trained.onnx))):
        page = tmp_path / f"{number}.html"
        caplog.clear()
        main(settings(model, page, "data=digits", "data.test_limit=200"))
        assert re.search(rf"accuracy +{accuracy:.4f}", caplog.text), caplog.text
        html = page.read_text()
        for part in (model, f"{accuracy:.2%}".replace("%", " %"), "Confusion and confidence", "Misclassified", "Go on"):
            assert part in html
        assert not re.search(r"(src|href)=.http", html), "the page needs nothing beside it"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no/such.onnx", ["no/such.onnx", "no such file"]),
        ("models:/nobody/1", ["models:/nobody/1", "not in the registry"]),
        (__file__, [__file__, "not one of our ONNX models"]),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, words: list[str], trained: Trained, tmp_path: Path) -> None:
    assert_raises_in_words(UserError, lambda: main(settings(model, tmp_path / "page.html", "data=digits")), *words)


def test_a_test_set_alone_and_some_of_the_classes_are_enough(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test pictures of the digits 3 and 7, in a folder test/, and what the model makes of them."""
    composed = compose(["data=digits"])
    digits = load_data(composed.data, composed.seed, composed.model.decoding).test
    chosen = [index for index in range(len(digits)) if digits.labels[index] in (3, 7)]
    for index in chosen:
        path = tmp_path / "pictures" / "test" / str(digits.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[index]).save(path)
    caplog.set_level(logging.INFO)
    page = tmp_path / "page.html"
    main(settings(str(trained.onnx), page, "data=folder", f"data.root={tmp_path / 'pictures'}"))
    answers = Predictor(trained.onnx).predict(np.stack([digits[index] for index in chosen]), all_cores=True)
    accuracy = (answers.argmax(axis=1) == digits.labels[chosen]).mean()
    assert re.search(rf"accuracy +{accuracy:.4f}", caplog.text), caplog.text
    assert f"on {len(chosen)} test pictures of 10 classes" in page.read_text()


def test_pictures_of_other_classes_are_refused(trained: Trained, image_folder: Path, tmp_path: Path) -> None:
    values = settings(str(trained.onnx), tmp_path / "page.html", "data=folder", f"data.root={image_folder}")
    assert_raises_in_words(UserError, lambda: main(values), "knows the classes 0, 1", "green, red")
