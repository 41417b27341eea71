"""Sixty real pictures of each class, which is what many people bring, are enough for a useful answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.draws import draw
from tests.helpers.state import state_in
from training import tracking
from training.config import compose
from training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path) -> Iterator[Path]:
    with state_in(tmp_path / "state") as directory:
        yield directory


def test_sixty_pictures_a_class_are_learnt_from(cifar10_images: str, tmp_path: Path) -> None:
    """One epoch of fine-tuning, as with many pictures, comes to 42 %."""
    if not cifar10_images.endswith(".zip"):
        pytest.skip("CIFAR10_IMAGES is no zip archive")
    root = draw(Path(cifar10_images), tmp_path / "pictures", train=60, test=100, seed=0)
    run_id = train(compose(["data=folder", f"data.root={root}", "experiment=quick"]))
    run = MlflowClient().get_run(run_id)
    assert run.data.metrics["test_accuracy"] > 0.6
    assert run.data.metrics["test_accuracy_low"] < run.data.metrics["test_accuracy"]
    # What is kept is what was done, with nothing left to decide.
    settings = tracking.run_settings(run_id)
    assert (settings.trainer.freeze_backbone, settings.trainer.min_steps, settings.small_data) == (True, None, [])
    assert settings.trainer.epochs * (540 // settings.trainer.batch_size) >= 300
    assert run.data.params["trainer.epochs"] == str(settings.trainer.epochs)
