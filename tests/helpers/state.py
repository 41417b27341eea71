"""A state directory of a test's own, and the small model that most tests ask."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

ROOT = Path(__file__).parents[2]
# A file that the last commit before contract 1 exported; make.sh beside it made it.
CONTRACT_0 = ROOT / "tests" / "serving" / "model" / "contract_0" / "model.onnx"
# A model that trains in seconds: what the fast tests need is a real one, not a good one.
TINY_OVERRIDES = [
    "data.train_limit=320",
    "data.validation_limit=100",
    "data.test_limit=200",
    "model.image_size=32",
    "trainer.frozen_stages=0",
    "trainer.epochs=2",
    "small_data=[]",
]
TINY = ["data=digits", "experiment=quick", *TINY_OVERRIDES]
# The same, as the flow takes it.
TINY_PARAMETERS = {"data": "digits", "experiment": "quick", "overrides": TINY_OVERRIDES}


@contextlib.contextmanager
def state_in(directory: Path) -> Iterator[Path]:
    """Keeps all that the program remembers in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STATE_DIR", str(directory))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory / 'mlflow.db'}")
        patch.setenv("PREFECT_HOME", str(directory / "prefect"))
        for name in [name for name in os.environ if name.startswith("SERVING_")] + ["PREFECT_API_URL", "MODEL_NAME"]:
            patch.delenv(name, raising=False)
        yield directory


class Trained(NamedTuple):
    """A run that went through training, export, registration and promotion."""

    run_id: str
    version: str
    onnx: Path


def train_champion(state: Path) -> Trained:
    """Trains a tiny model and makes it the champion; its file is copied away from what the registry has beside it."""
    from serving.model.registry import DEFAULT_NAME, onnx_file, version_uri
    from training.config import compose
    from training.release.candidate import export_run
    from training.release.promotion import promote_if_better
    from training.release.registry import register
    from training.train import train

    run_id = train(compose(TINY))
    version = register(run_id, export_run(run_id), DEFAULT_NAME)
    promote_if_better(version, DEFAULT_NAME)
    return Trained(
        run_id, version, Path(shutil.copy(onnx_file(version_uri(DEFAULT_NAME, version), state), state / "alone.onnx"))
    )


def promote(trained: Trained, model: onnx.ModelProto | None = None) -> str:
    """Registers the trained model, or an edited one, as the new champion; returns its version."""
    import mlflow

    from serving.model.registry import CHAMPION, DEFAULT_NAME
    from training import tracking
    from training.release.registry import register

    client = tracking.connect()
    with mlflow.start_run(run_id=trained.run_id):
        logged = mlflow.onnx.log_model(model or onnx.load(trained.onnx), name="onnx", save_as_external_data=False)
    version = register(trained.run_id, logged.model_uri, DEFAULT_NAME)
    client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, version)
    return version


def with_metadata(trained: Trained, **changed: str) -> onnx.ModelProto:
    """The trained model with other words in what its file says of itself."""
    model = onnx.load(trained.onnx)
    properties = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(model, {**properties, **changed})
    return model
