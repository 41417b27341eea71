"""python -m flows.search: killed in its middle it goes on, and its best trial is an experiment that training takes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.search import search
from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import ROOT, TINY_OVERRIDES, state_in
from tests.helpers.waiting import wait_until
from training import tracking
from training.config import compose
from training.search import outcome
from training.search.study import Study
from training.train import finished_run, read, run_key, train

pytestmark = pytest.mark.slow
pytest.importorskip("optuna", reason="make scale")


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with state_in(tmp_path_factory.mktemp("searches")) as state:
        yield state


def test_an_unknown_parameter_is_refused_before_any_work(prefect_api: None, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("trainer.learning_rate: [0.1, 0.2]")
    call = {"data": "digits", "space": str(space), "overrides": TINY_OVERRIDES}
    assert_raises_in_words(UserError, lambda: search(**call), str(space), "trainer.learning_rate")
    assert not tracking.state_dir().joinpath("cache").exists()


def test_a_search_that_is_killed_goes_on_as_one_that_is_not(prefect_api: None, own_state: Path, tmp_path: Path) -> None:
    """One of the learning rates is absurd, and its trial fails."""
    space = tmp_path / "two.yaml"
    space.write_text(
        "trainer.lr: [1e30, 1.5e-3]\ntrainer.frozen_stages: [0, 3]\ntrainer.weight_decay: {low: 0.01, high: 0.1}"
    )
    overrides = [*TINY_OVERRIDES, "trainer.epochs=3", "trainer.precision=no", "mlflow_experiment=searches"]
    asked_for = {"trials": 3, "space": str(space), "data": "digits", "overrides": overrides}
    words = [f"{key}={value}".replace("'", '"') for key, value in asked_for.items()]

    def start(state: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
        environment |= {"STATE_DIR": str(state), "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db"}
        command = [sys.executable, "-m", "flows.search", *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    killed = tmp_path / "killed"
    process = start(killed)
    wait_until(lambda: bool(list(killed.glob("runs/*-1-*/epoch-0001"))) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    resumed = start(killed)
    rows = search(**asked_for)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    assert "trial 1: " in output
    assert "trial 0: " not in output
    assert "resuming from the checkpoint of epoch" in output

    (name,) = [path.stem for path in (own_state / "searches").iterdir()]
    assert [path.stem for path in (killed / "searches").iterdir()] == [name]
    found = re.sub(r"MLflow run \w+", "", (killed / "experiment" / f"{name}.yaml").read_text())
    assert found == re.sub(r"MLflow run \w+", "", (own_state / "experiment" / f"{name}.yaml").read_text())

    trials, expected = (Study(state / "searches" / f"{name}.journal").trials for state in (killed, own_state))
    assert [(trial.params, trial.values, trial.state.name) for trial in trials] == [
        (trial.params, trial.values, trial.state.name) for trial in expected
    ]
    assert [row["trial"] for row in rows] == [0, 1, 2]
    failed = [row["remark"] for row in rows if "trainer.lr" in row["remark"]]
    assert failed, "one that fails takes nothing with it"

    client = tracking.connect()
    runs = client.search_runs([tracking.experiment_id("searches")])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"trials.svg", "experiment.yaml"}
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in nested) == [f"trial {number}" for number in range(3)]
    assert not [metric for run in nested for metric in run.data.metrics if metric.startswith("test_")]
    with get_client(sync_client=True) as api:
        assert {"trials", "experiment"} <= {artifact.key for artifact in api.read_artifacts()}

    best = next(run for run in nested if run.info.run_name == f"trial {outcome.best(expected).number}")
    pictures = [word for word in TINY_OVERRIDES if word.startswith("data.")]
    settings = compose(["data=digits", *pictures, f"experiment={name}", "mlflow_experiment=searches"])
    assert best.data.tags["run_key"].endswith(run_key(*read(settings)))
    assert finished_run(settings) is None, "a trial is no run that has been evaluated"
    trained = train(settings)
    assert tracking.history(trained, "validation_accuracy") == tracking.history(best.info.run_id, "validation_accuracy")
