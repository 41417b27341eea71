"""Every configuration composes, and what it names can be built."""

from pathlib import Path

import pytest
import timm

from training.config import compose_config
from training.data import build_transform
from training.errors import UserError

CONF = Path(__file__).parents[2] / "training" / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("model", options("model"))
def test_every_experiment_composes_with_every_model(experiment: str, model: str) -> None:
    backbone = ["model.backbone=convnext_tiny"] if model == "timm" else []
    config = compose_config([f"experiment={experiment}", f"model={model}", *backbone])
    assert timm.is_model(config.model.backbone)
    assert config.model.name == (model if model != "timm" else "convnext_tiny")


@pytest.mark.parametrize("transforms", options("transforms"))
def test_every_augmentation_can_be_built(transforms: str) -> None:
    config = compose_config([f"transforms={transforms}"])
    names = [type(step).__name__ for step in build_transform(config.transforms, 32, 224).transforms]
    assert names == [
        *("Resize", "PadIfNeeded", "RandomCrop", "HorizontalFlip", "Rotate", "CoarseDropout", "ToTensorV2"),
    ]


def test_the_reference_augmentation_is_the_published_one() -> None:
    config = compose_config(["experiment=reference", "model=resnet18"])
    resize, pad, crop, flip, rotate, dropout, _ = build_transform(config.transforms, 32, 224).transforms
    assert (resize.height, resize.width, crop.height, crop.width) == (224,) * 4
    assert (pad.min_height, pad.min_width) == (247, 247)
    assert flip.p == rotate.p == 0.5
    assert tuple(rotate.limit) == (-15, 15)
    assert tuple(dropout.num_holes_range) == (1, 5)
    assert tuple(dropout.hole_height_range) == tuple(dropout.hole_width_range) == (0.1, 0.25)
    assert dropout.fill == 0
    trainer = config.trainer
    assert (trainer.epochs, trainer.batch_size, trainer.optimizer, trainer.lr) == (5, 64, "adam", 1e-4)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.epoch=3", ["epoch"]),
        ("model=resnet19", ["resnet19", "densenet121", "efficientnet_lite0"]),
        ("experiment=slow", ["slow", "quick", "reference"]),
        ("trainer.epochs", ["trainer.epochs"]),
    ],
)
def test_a_wrong_override_is_explained(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as failure:
        compose_config([override])
    assert len(str(failure.value).splitlines()) <= 2
    assert all(word in str(failure.value) for word in words)
