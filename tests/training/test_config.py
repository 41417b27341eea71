"""Every configuration composes, every value is checked before any work, and every text is taken as it stands."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from sklearn.datasets import load_sample_image

from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words, assert_user_error, run_module
from training import compare, eda, evaluate
from training.config import CONFIG_DIR, compose, hydra_command
from training.data.augmentation import build_transform
from training.settings import CompareSettings, EdaSettings, EvaluateSettings, Settings, TrainSettings


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("model", options("model"))
def test_every_experiment_composes_with_every_model(experiment: str, model: str) -> None:
    backbone = ["model.backbone=convnext_tiny"] if model == "timm" else []
    settings = compose([f"experiment={experiment}", f"model={model}", *backbone])
    assert timm.is_model(settings.model.backbone)
    assert settings.model.name == (model if model != "timm" else "convnext_tiny")


SIZES_OF_VIT = ["model=vit_tiny_patch16_224", "experiment=quick"]


@pytest.mark.parametrize(
    ("overrides", "image_size", "mean", "interpolation"),
    [
        pytest.param(["model=convnext_tiny"], 224, 0.485, "bicubic", id="timm's own"),
        pytest.param(["model=timm", "model.backbone=convnext_tiny"], 224, 0.485, "bicubic", id="by the long way"),
        pytest.param(["model=inception_v3"], 299, 0.5, "bicubic", id="of another size and mean"),
        pytest.param(["model=convnext_tiny", "experiment=quick"], 96, 0.485, "bicubic", id="an experiment wins"),
        pytest.param(["model=convnext_tiny", "experiment=reference"], 224, 0.485, "bilinear", id="the reference"),
        pytest.param(
            ["model=convnext_tiny", "experiment=quick", "model.image_size=64", "model.interpolation=bilinear"],
            64, 0.485, "bilinear", id="the command line wins",
        ),
        pytest.param(SIZES_OF_VIT, 224, 0.5, "bicubic", id="an experiment gives way to a fixed size"),
        pytest.param([*SIZES_OF_VIT, "model.image_size=96"], 96, 0.5, "bicubic", id="but not the command line"),
        pytest.param(["model=vit_b16", "experiment=quick"], 96, 0.5, "bilinear", id="one of our own"),
    ],
)  # fmt: skip
def test_a_model_has_its_own_settings(overrides: list[str], image_size: int, mean: float, interpolation: str) -> None:
    model = compose(overrides).model
    assert (model.image_size, model.mean[0], model.interpolation) == (image_size, mean, interpolation)
    fixed = model.backbone.startswith("vit") and image_size != 224
    assert model.backbone_options == ({"img_size": image_size} if fixed else {})
    assert all(
        step.get("interpolation", interpolation) == interpolation
        for step in compose(overrides).transforms.steps.values()
    )


def test_a_size_that_gives_way_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        compose(SIZES_OF_VIT)
    assert "vit_tiny_patch16_224 takes pictures of 224 pixels, not of 96" in caplog.text


@pytest.mark.parametrize("transforms", options("transforms"))
def test_every_augmentation_can_be_built(transforms: str) -> None:
    settings = compose([f"transforms={transforms}"])
    names = [type(step).__name__ for step in build_transform(settings.transforms, 32, 224).transforms]
    of_the_reference = ["Fit", "PadIfNeeded", "RandomCrop", "HorizontalFlip", "Rotate", "CoarseDropout"]
    assert names == [*of_the_reference, *(["SomeOf"] if transforms == "randaugment" else []), "ToTensorV2"]


@pytest.mark.parametrize("experiment", ["best", "quick"])
def test_randaugment_is_two_of_fourteen_and_takes_the_place_of_rotation_and_dropout(experiment: str) -> None:
    settings = compose(["transforms=randaugment", f"experiment={experiment}"])
    *_, rotate, dropout, two_of, _ = build_transform(settings.transforms, 32, 224).transforms
    assert rotate.p == dropout.p == 0
    assert (two_of.n, two_of.replace, two_of.p, len(two_of.transforms)) == (2, True, 1, 14)
    photograph = np.ascontiguousarray(load_sample_image("flower.jpg")[100:356, 100:356])
    changed = [
        any((step(image=photograph)["image"] != photograph).any() for _ in range(20))  # the smallest change nothing
        for step in two_of.transforms
    ]
    assert changed == [False, *[True] * 13], "the first leaves a picture as it is"


def test_the_reference_augmentation_is_the_published_one() -> None:
    settings = compose(["experiment=reference", "model=resnet18"])
    fit, pad, crop, flip, rotate, dropout, _ = build_transform(settings.transforms, 32, 224).transforms
    assert (fit.size, crop.height, crop.width) == (224,) * 3
    assert (pad.min_height, pad.min_width) == (247, 247)
    assert flip.p == rotate.p == 0.5
    assert tuple(rotate.limit) == (-15, 15)
    assert tuple(dropout.num_holes_range) == (1, 5)
    assert tuple(dropout.hole_height_range) == tuple(dropout.hole_width_range) == (0.1, 0.25)
    assert dropout.fill == 0
    trainer = settings.trainer
    assert (trainer.epochs, trainer.batch_size, trainer.optimizer, trainer.lr) == (5, 64, "adam", 1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.epoch=3"], ["epoch"]),
        (["trainer.minutes=inf"], ["trainer.minutes=inf", "finite"]),
        (["model=resnet19"], ["resnet19", "densenet121", "efficientnet_lite0"]),
        (["experiment=slow"], ["slow", "quick", "reference"]),
        (["trainer.epochs"], ["trainer.epochs"]),
        (["data=folder"], ["data.root"]),
        (["model=timm"], ["model.backbone"]),
        (["+data.colour=red"], ["data.colour=red", "not permitted"]),
        (["model=timm", "model.backbone=resnet19"], ["model.backbone=resnet19", "did you mean", "resnet18"]),
        (["data=digits", "model.flip_average=true"], ["model.flip_average=true", "data.horizontal_flip=0"]),
        (["model=resnet18", "model.weights=package"], ["model.weights=package", "tf_efficientnet_lite2 only"]),
        (["model.weights=no/such.pt"], ["model.weights=no/such.pt", "no such file"]),
        (["trainer.optimizer=adamm"], ["trainer.optimizer=adamm", "adamw"]),
        (["trainer.resume=always"], ["trainer.resume=always", "'auto' or 'never'"]),
        (["transforms.steps.rotate.limit=abc"], ["transforms.steps.rotate.limit=abc", "tuple"]),
        (["transforms=randaugment", "transforms.steps.rand_augment.n=abc"], ["transforms.steps.rand_augment", "abc"]),
        (["+transforms.steps.rotate.limits=3"], ["transforms.steps.rotate", "limits"]),
    ],
)
def test_a_wrong_override_is_explained(overrides: list[str], words: list[str]) -> None:
    assert_raises_in_words(UserError, lambda: compose(overrides), *words)


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of all values, and the values; a list is one value."""
    for name, value in values.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [(prefix + name, value)]


def wrong(value: Any) -> str:
    """Nothing is no text, a text is no number, and a number is neither a list nor a dictionary."""
    return "" if isinstance(value, str) else "abc" if isinstance(value, int | float | None) else "7"


DEFAULTS = compose(["data=digits"]).model_dump(mode="json")
# What a path or a source is made of is checked with the rest of it.
KEYS = {key: value for key, value in leaves(DEFAULTS) if key not in ("data.root",)}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_every_group_refuses_a_wrong_value_by_name(key: str) -> None:
    assert_raises_in_words(UserError, lambda: compose(["data=digits", f"{key}={wrong(KEYS[key])}"]), key)


@pytest.fixture(autouse=True)
def logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets logging up for its whole process, which here is that of all tests."""
    monkeypatch.setattr("hydra._internal.hydra.configure_log", lambda *_: None)
    monkeypatch.setattr("hydra.core.utils.configure_log", lambda *_: None)


def run_command(run: Callable[[Any], None], settings: type[Settings], name: str, *words: str) -> Any:
    """What the command receives as its settings."""
    received = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        hydra_command(received.append, settings, name)
    (values,) = received
    assert run.__annotations__["settings"] is settings
    return values


@pytest.mark.parametrize(
    ("run", "settings", "name", "words", "key"),
    [
        (evaluate.main, EvaluateSettings, "evaluate", ["data=digits"], "model_uri"),
        (evaluate.main, EvaluateSettings, "evaluate", ["data=digits", "model_uri=m", "seed=abc"], "seed=abc"),
        (evaluate.main, EvaluateSettings, "evaluate", ["data=digits", "model_uri=m", "report="], "report="),
        (eda.main, EdaSettings, "eda", ["data=digits", "near_duplicate=75"], "near_duplicate=75"),
        (eda.main, EdaSettings, "eda", ["data=digits", "mlflow_experiment="], "mlflow_experiment="),
        (eda.main, EdaSettings, "eda", ["data=folder"], "data.root"),
        (compare.main, CompareSettings, "compare", ["models=[]"], "models"),
        (compare.main, CompareSettings, "compare", ["experiments=frozen"], "experiments=frozen"),
        (compare.main, CompareSettings, "compare", ["overrides=[3]"], "overrides.0=3"),
    ],
)
def test_the_other_commands_refuse_a_wrong_value_by_name(
    run: Callable[[Any], None],
    settings: type[Settings],
    name: str,
    words: list[str],
    key: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(run, settings, name, *words)
    assert stop.value.code == 2
    assert key in capsys.readouterr().err


ODD = [
    "x(1).zip",
    "a,b.zip",
    "a=b",
    "Ann's, all",
    "[{#&!;",
    "Bilder/Müll",
    "${seed}",
    "back\\slash\\",
    "12",
    "~a",
]


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_taken_as_it_stands(text: str) -> None:
    settings = compose(["data=folder", f"data.root={text}", f"data.name={text}", f"state_dir={text}"])
    assert (settings.data.root, settings.data.name, settings.state_dir) == (text, text, Path(text))
    assert settings.data.source["root"] == text
    given = ["data=folder", f"data.root={text}", f"model_uri={text}", f"report={text}"]
    received = run_command(evaluate.main, EvaluateSettings, "evaluate", *given)
    assert (received.data.root, received.model_uri, received.report) == (text, text, Path(text))


@pytest.mark.parametrize(
    ("settings", "config", "module"),
    [
        (TrainSettings, "config", "training.train"),
        (EvaluateSettings, "evaluate", "training.evaluate"),
        (EdaSettings, "eda", "training.eda"),
        (CompareSettings, "compare", "training.compare"),
    ],
)
def test_help_shows_every_key_with_an_example(
    settings: type[Settings],
    config: str,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        hydra_command(lambda _: None, settings, config)
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert f"python -m {module} " in shown
    assert all(f"\n{key}:" in shown for key in settings.model_fields)


def test_a_mistake_ends_a_command_with_code_2_and_leaves_nothing_behind(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = run_module("training.train", "trainer.epochs=0", STATE_DIR=str(tmp_path), MLFLOW_TRACKING_URI=uri)
    assert_user_error(result, "trainer.epochs=0", "greater than 0")
    assert not list(tmp_path.iterdir()), "no run was started"
