"""python -m training.train, as a user runs it."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from filelock import FileLock

from tests.conftest import TINY, assert_user_error
from training import tracking
from training.config import compose_config
from training.data import load_data
from training.train import run_key, train

Run = Callable[..., CompletedProcess[str]]


@pytest.mark.slow
def test_a_run_prints_its_configuration_and_is_tracked_whole(run_module: Run) -> None:
    result = run_module("training.train", *TINY, "trainer.epochs=1", "mlflow_experiment=command line")
    assert result.returncode == 0, result.stderr
    assert "frozen_stages: 0" in result.stdout
    assert "test accuracy" in result.stdout + result.stderr

    client = tracking.connect()
    (run,) = client.search_runs([tracking.experiment_id("command line")])
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.epochs"] == "1"
    assert len(run.data.tags["data_fingerprint"]) == 64
    assert run.data.tags["git_dirty"] in ("true", "false", "unknown")
    assert {"test_accuracy", "test_precision", "test_recall", "test_f1", "test_calibration_error"} <= set(
        run.data.metrics
    )
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 5
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {
        "digits train",
        "digits validation",
        "digits test",
    }
    assert (
        f"torch=={torch.__version__.partition('+')[0]}"
        in tracking.artifact(run.info.run_id, "environment.txt").read_text()
    )
    assert {"temperature", "validation_calibration_error"} <= set(run.data.metrics)
    for plot in ("confusion", "reliability", "learning_curves"):
        assert tracking.artifact(run.info.run_id, f"plots/{plot}.png").stat().st_size > 10_000
    assert "efficientnet_lite0 on digits" in tracking.artifact(run.info.run_id, "report.html").read_text()


def test_own_pictures_of_any_size_train(image_folder: Path) -> None:
    overrides = ["data=folder", f"data.root={image_folder}", "experiment=quick", "model.image_size=32"]
    limits = ["data.train_limit=null", "data.validation_limit=null", "data.validation_fraction=0.25"]
    run_id = train(compose_config([*overrides, *limits, "trainer.epochs=1"]))
    assert tracking.run_classes(run_id) == ["green", "red"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.epoch=3"], ["epoch"]),
        (["model=resnet19"], ["resnet19", "densenet121", "efficientnet_lite0"]),
        (["data=folder"], ["data.root"]),
        (["data=digits", "transforms.steps.rotate.limit=abc"], ["Rotate"]),
        (["data=folder", "data.root=/no/such/place"], ["/no/such/place", "does not exist"]),
        (["data=digits", "data.broken=ignore"], ["data.broken=ignore", "'refuse' or 'skip'"]),
        (["data=digits", "model=timm", "model.backbone=resnet19"], ["resnet19"]),
        (["data=digits", "trainer.resume=always"], ["trainer.resume=always", "'auto' or 'never'"]),
        (["data=digits", "trainer.precision=fp8"], ["trainer.precision=fp8", "bf16"]),
        (["data=digits", "trainer.epochs=0"], ["trainer.epochs=0", "greater than 0"]),
        (["data=digits", "trainer.epochs=many"], ["trainer.epochs=many", "integer"]),
        (["data=digits", "data.train_limit=abc"], ["data.train_limit=abc", "integer"]),
        (["data=digits", "export.quantize=int4"], ["export.quantize=int4", "int8"]),
        (["data=digits", "trainer.optimizer=adamm"], ["trainer.optimizer=adamm"]),
        (["data=digits", "trainer.scheduler=cosin"], ["trainer.scheduler=cosin"]),
        (["data=digits", "transforms.resolution=big"], ["transforms.resolution=big", "native"]),
    ],
)
def test_a_mistake_ends_with_code_2_and_leaves_nothing_behind(
    overrides: list[str], words: list[str], run_module: Run, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = run_module("training.train", *overrides, STATE_DIR=str(tmp_path), MLFLOW_TRACKING_URI=uri)
    assert_user_error(result, *words)
    assert not (tmp_path / "mlflow.db").exists(), "no run was started"


def test_what_is_being_trained_is_not_trained_twice_at_once(run_module: Run, tmp_path: Path) -> None:
    data = load_data(compose_config(TINY).data, 42)
    key = run_key(compose_config(TINY), data)
    (tmp_path / "locks").mkdir()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with FileLock(tmp_path / "locks" / key):
        result = run_module("training.train", *TINY, STATE_DIR=str(tmp_path), MLFLOW_TRACKING_URI=uri)
    assert_user_error(result, key, "already")
