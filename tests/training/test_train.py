"""One training run, from settings to what MLflow keeps of it."""

import gc
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from serving.model.errors import UserError
from serving.model.pictures.decoding import AS_SHOWN
from tests.helpers.commands import run_module
from tests.helpers.state import ROOT, TINY, state_in
from tests.helpers.waiting import wait_until
from training import tracking
from training.config import compose
from training.data.split import load_data
from training.model.classifier import build_model
from training.settings import TrainSettings
from training.train import few_test_pictures, run_key, set_up, train


@pytest.mark.slow
def test_a_run_prints_its_configuration_and_is_tracked_whole() -> None:
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
    metrics = {f"test_{name}" for name in ("accuracy", "precision", "recall", "f1", "calibration_error")}
    assert metrics | {"temperature", "validation_calibration_error"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 5
    sets = {entry.dataset.name for entry in run.inputs.dataset_inputs}
    assert sets == {"digits train", "digits validation", "digits test"}
    packages = tracking.artifact(run.info.run_id, "environment.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}" in packages
    for plot in ("confusion", "reliability", "learning_curves"):
        assert tracking.artifact(run.info.run_id, f"plots/{plot}.svg").stat().st_size > 5_000
    assert "efficientnet_lite0 on digits" in tracking.artifact(run.info.run_id, "report.html").read_text()
    assert tracking.run_settings(run.info.run_id).trainer.epochs == 1


def test_own_pictures_of_any_size_train_and_what_is_left_out_is_kept(image_folder: Path) -> None:
    (image_folder / "train" / "red" / "notes.txt").write_text("no picture")
    overrides = ["data=folder", f"data.root={image_folder}", "experiment=quick", "model.image_size=32"]
    limits = ["data.train_limit=null", "data.validation_limit=null", "data.validation_fraction=0.25"]
    run_id = train(compose([*overrides, *limits, "trainer.epochs=1"]))
    assert tracking.artifact(run_id, tracking.CLASSES_FILE).read_text() == '["green", "red"]'
    left_out = tracking.artifact(run_id, tracking.LEFT_OUT_FILE).read_text().splitlines()
    assert left_out[0] == "name,kind,detail"
    assert left_out[1].startswith("train/red/notes.txt,not a picture,")


def test_classes_with_few_test_pictures_are_named(image_folder: Path) -> None:
    data = load_data(compose(["data=folder", f"data.root={image_folder}"]).data, 1, AS_SHOWN)
    assert few_test_pictures(data) == {"green": 6, "red": 6}
    digits = load_data(compose(["data=digits"]).data, 1, AS_SHOWN)
    assert few_test_pictures(digits) == {}


def test_pictures_that_are_not_there_leave_nothing_behind(tmp_path: Path) -> None:
    with state_in(tmp_path / "state") as state:
        with pytest.raises(UserError, match="/no/such/place does not exist"):
            train(compose(["data=folder", "data.root=/no/such/place"]))
        assert not (state / "mlflow.db").exists(), "no run was started"


def test_what_is_being_trained_is_not_trained_twice_at_once(tmp_path: Path) -> None:
    with state_in(tmp_path):
        settings = compose(TINY)
        key = run_key(settings, load_data(settings.data, settings.seed, settings.model.decoding))
        (tmp_path / "locks").mkdir()
        with FileLock(tmp_path / "locks" / key), pytest.raises(UserError, match=f"already in progress .run key {key}"):
            train(settings)


def test_other_weights_in_the_same_file_are_another_run(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    settings = compose([*TINY, f"model.weights={weights}"])
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    keys = []
    for content in (b"today's", b"tomorrow's", b"today's"):
        weights.write_bytes(content)
        keys.append(run_key(settings, data))
    assert keys[0] == keys[2]
    assert keys[0] != keys[1]


def test_a_run_that_had_no_memory_to_evaluate_goes_on_with_smaller_batches() -> None:
    large, small = (compose([*TINY, f"evaluation_batch_size={size}"]) for size in (4096, 8))
    data = load_data(small.data, small.seed, small.model.decoding)
    assert run_key(small, data) == run_key(large, data)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_says_from_where_it_goes_on(tmp_path: Path) -> None:
    """And computes in the threads that it began with, as its page says, when it is given other CPUs."""
    command = [sys.executable, "-m", "training.train", *TINY, "trainer.epochs=100000"]
    on_one_cpu = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    epoch = 0
    with state_in(tmp_path) as state, (tmp_path / "errors").open("w") as errors:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        for number, prefix in ((signal.SIGTERM, on_one_cpu), (signal.SIGINT, [])):
            with subprocess.Popen(
                [*prefix, *command],
                cwd=ROOT,
                env=environment,
                stderr=errors,
                stdout=subprocess.DEVNULL,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` lets it be ignored
            ) as process:
                last = max(epoch, 1)
                try:
                    wait_until(lambda last=last: any(epoch_of(path) > last for path in state.glob("runs/*/epoch-*")))
                    process.send_signal(number)
                    process.wait(120)
                finally:
                    process.kill()
            assert process.returncode == 128 + number
            (run,) = tracking.connect().search_runs([tracking.experiment_id("cifar10")])
            assert run.info.status == "KILLED"
            assert run.data.tags["threads"] == "1"
            epoch = max(epoch_of(path) for path in state.glob("runs/*/epoch-*"))
            assert f"goes on after epoch {epoch} of 100000" in run.data.tags["mlflow.note.content"]
    assert "Traceback" not in (tmp_path / "errors").read_text()


def epoch_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("epoch-"))


@pytest.mark.parametrize(
    ("module", "given", "spins"),
    [
        ("training.train", {}, "1000"),
        ("flows.retrain", {}, "1000"),
        ("training.train", {"OMP_WAIT_POLICY": "passive"}, "0"),
    ],
)
def test_threads_that_wait_give_their_cores_away(module: str, given: dict[str, str], spins: str) -> None:
    """As OpenMP itself tells, which reads it only when it is loaded; a user's own word counts more."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **given}
    command = [sys.executable, "-c", f"import {module}"]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told)) == {spins}


def test_a_stop_counts_more_than_what_could_not_be_noted_of_it(caplog: pytest.LogCaptureFixture) -> None:
    def act() -> None:
        raise ConnectionError("MLflow is away")

    with pytest.raises(KeyboardInterrupt), tracking.when_told_to_stop(act):
        raise KeyboardInterrupt
    assert "MLflow is away" in caplog.text


def test_a_run_without_an_artifact_says_so() -> None:
    client = tracking.connect()
    run = client.create_run(tracking.experiment_id("cut off"))
    with pytest.raises(UserError, match=f"run {run.info.run_id} has no {tracking.WEIGHTS_FILE}"):
        tracking.artifact(run.info.run_id, tracking.WEIGHTS_FILE)


@pytest.fixture
def no_chance() -> Iterator[None]:
    """Python does not happen to collect what refers to itself."""
    gc.disable()
    yield
    gc.enable()


def test_what_trained_before_has_no_memory_when_the_next_model_is_built(
    no_chance: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = compose([*TINY, "trainer.steps=1"])
    weights, left = weakref.ref(one_step(settings)), []

    def build(*given: Any) -> Any:
        left.append(weights())
        return build_model(*given)

    monkeypatch.setattr("training.train.build_model", build)
    set_up(settings)
    assert left == [None]


def one_step(settings: TrainSettings) -> torch.Tensor:
    """A parameter of a model that has learnt from a batch, and of which nobody has need any more."""
    run = set_up(settings)
    next(run.trainer.fit())
    return next(run.trainer.classifier.parameters())
