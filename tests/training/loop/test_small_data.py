"""How much work suits an amount of pictures."""

import pytest

from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from training.config import compose
from training.loop.small_data import suited
from training.loop.trainable import check_trainable
from training.settings import TrainSettings

HEAD_ALONE = "{below: 100, image_size: 224, trainer: {freeze_backbone: true}}"
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


@pytest.mark.parametrize("model", ["vit_b16", "vit_tiny_patch16_224", "csatv2"])
def test_few_pictures_suit_every_model(model: str) -> None:
    """One that takes pictures of one size only keeps it; stages that timm does not know do not matter."""
    chosen = compose([f"model={model}", "model.weights=none", "experiment=quick"])
    check_trainable(chosen)
    few = suited(chosen, 540)
    check_trainable(few)
    assert few.trainer.freeze_backbone
    assert few.model.image_size == {"vit_b16": 96, "vit_tiny_patch16_224": 224, "csatv2": 160}[model]


def test_an_entry_that_is_no_setting_is_refused_by_name() -> None:
    entry = "small_data=[{below: 9, trainer: {batch_size: many}}]"
    assert_raises_in_words(UserError, lambda: compose([entry]), "trainer.batch_size=many")


def test_nothing_is_left_to_decide() -> None:
    once = suited(settings(), 50)
    assert suited(once, 50) == suited(once, 10**6) == once


def test_the_command_line_wins() -> None:
    chosen = suited(compose(["experiment=quick", FEW, "trainer.epochs=3", "model.image_size=32"]), 50)
    assert (chosen.trainer.epochs, chosen.model.image_size, chosen.trainer.freeze_backbone) == (3, 32, True)


@pytest.mark.parametrize("experiment", ["reference", "frozen", "unfrozen", "best"])
def test_only_quick_looks_at_the_number_of_pictures(experiment: str) -> None:
    before = compose([f"experiment={experiment}"])
    assert suited(before, 10) == before
