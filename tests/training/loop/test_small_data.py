"""How much work suits an amount of pictures."""

import pytest

from training.config import compose
from training.loop.small_data import suited
from training.settings import TrainSettings

HEAD_ALONE = "{below: 100, model: {image_size: 224}, trainer: {freeze_backbone: true}}"
FEW = f"small_data=[{HEAD_ALONE}, {{below: 1000, trainer: {{batch_size: 32}}}}]"


def settings(*overrides: str) -> TrainSettings:
    return compose(["data=digits", FEW, "trainer.min_steps=100", *overrides])


def test_the_first_entry_with_more_pictures_counts() -> None:
    few, more, many = (suited(settings(), count) for count in (99, 999, 1000))
    assert (few.model.image_size, few.trainer.freeze_backbone, few.trainer.batch_size) == (224, True, 64)
    assert (more.model.image_size, more.trainer.freeze_backbone, more.trainer.batch_size) == (96, False, 32)
    assert many.model == settings().model


@pytest.mark.parametrize(("pictures", "epochs"), [(50, 100), (128, 50), (640, 10), (6400, 5)])
def test_there_are_as_many_epochs_as_the_steps_need(pictures: int, epochs: int) -> None:
    """100 steps of 64 pictures; 5 epochs at least, as set."""
    assert suited(settings("small_data=[]"), pictures).trainer.epochs == epochs


def test_nothing_is_left_to_decide() -> None:
    once = suited(settings(), 50)
    assert suited(once, 50) == suited(once, 10**6) == once


def test_the_command_line_wins() -> None:
    chosen = suited(compose(["experiment=quick", FEW, "trainer.epochs=3", "model.image_size=32"]), 50)
    assert (chosen.trainer.epochs, chosen.model.image_size, chosen.trainer.freeze_backbone) == (3, 32, True)


@pytest.mark.parametrize("experiment", ["reference", "frozen", "unfrozen", "best"])
def test_only_quick_looks_at_the_number_of_pictures(experiment: str) -> None:
    before = compose(["data=digits", f"experiment={experiment}"])
    assert suited(before, 10) == before
