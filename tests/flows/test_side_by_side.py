"""Candidates side by side: the weights and the champion that one after another gives, whatever becomes of a process."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterTimestamp
from prefect.settings import PREFECT_API_URL

from flows.retrain import retrain
from flows.search import search
from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.nodes import two_nodes
from tests.helpers.servers import mlflow_server, shell_environment
from tests.helpers.state import ROOT, TINY_OVERRIDES, state_in
from tests.helpers.waiting import free_port, wait_until
from training import tracking
from training.config import compose
from training.release import registry
from training.search.study import Study

pytestmark = pytest.mark.slow
# timm's smallest, which are exported in no time.
MODELS = ["test_resnet", "test_efficientnet"]
GIVEN = {"models": MODELS, "data": "digits", "overrides": [*TINY_OVERRIDES, "model.weights=none", "trainer.epochs=9"]}
EXPERIMENT = compose([]).mlflow_experiment


class Outcome(NamedTuple):
    """What a retraining came to: by model the hash of its weights, and the champion's model."""

    weights: dict[str, str]
    champion: str


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, prefect_api: None) -> Iterator[Path]:
    """With servers of Prefect and of MLflow, as many machines have them."""
    directory = tmp_path_factory.mktemp("side_by_side")
    port = free_port()
    store, artifacts = f"sqlite:///{directory}/mlflow.db", str(directory / "mlartifacts")
    server = mlflow_server(directory, shell_environment(directory), port, store, artifacts)
    with state_in(directory) as state, pytest.MonkeyPatch.context() as patch, server:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        patch.setenv("SERVING_THREADS", "2")  # on any machine
        yield state


@pytest.fixture(scope="module")
def one_after_another() -> Outcome:
    threads = torch.get_num_threads()
    outcome, _ = trained("in_turn")
    assert torch.get_num_threads() == threads, "what was taken is given back"
    return outcome


def trained(runner: str) -> tuple[Outcome, list[Any]]:
    """A retraining with a CPU for each, and its runs in MLflow."""
    client, experiment = tracking.connect(), tracking.experiment_id(EXPERIMENT)
    before = {run.info.run_id for run in client.search_runs([experiment])}
    retrain(**GIVEN, name=runner, runner=runner, cpus=1, force=True)
    runs = [run for run in client.search_runs([experiment]) if run.info.run_id not in before]
    assert [(run.info.status, run.data.tags["threads"]) for run in runs] == [("FINISHED", "1")] * 2
    weights = {
        run.data.tags["model"]: sha256(
            tracking.artifact(run.info.run_id, tracking.WEIGHTS_FILE).read_bytes()
        ).hexdigest()
        for run in runs
    }
    champion = registry.champion(runner)
    assert champion
    return Outcome(weights, client.get_run(str(champion.run_id)).data.tags["model"]), runs


def checkpoints(directory: Path) -> set[str]:
    """The keys of the runs that have any."""
    return {path.parent.name for path in directory.glob("*/epoch-*")}


def candidates() -> dict[str, psutil.Process]:
    """The processes that train, by their run's key: each holds its lock."""
    found = {}
    for process in psutil.process_iter():
        try:
            for file in process.open_files():
                if Path(file.path).parent.name == "locks" and os.environ["STATE_DIR"] in file.path:
                    found[Path(file.path).name] = process
        except psutil.Error:
            continue
    return found


def has_resumed(since: datetime) -> bool:
    """Whether a run's log says that it goes on."""
    with get_client(sync_client=True) as api:
        logs = api.read_logs(LogFilter(timestamp=LogFilterTimestamp(after_=since)), limit=200)
    return any("resuming from the checkpoint of epoch" in entry.message for entry in logs)


def test_a_killed_process_costs_nothing_and_the_outcome_is_that_of_one_after_another(
    state: Path, one_after_another: Outcome
) -> None:
    def with_checkpoints() -> list[psutil.Process]:
        begun = checkpoints(state / "runs")
        return [process for key, process in candidates().items() if key in begun]

    def kill_one() -> int:
        found: list[psutil.Process] = []
        wait_until(lambda: bool(found.extend(with_checkpoints()) or found), 300)
        found[0].kill()
        return found[0].pid

    begin = datetime.now(UTC)
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill_one)
        outcome, _ = trained("processes")
        assert killed.result() != os.getpid()
    assert outcome == one_after_another
    wait_until(lambda: has_resumed(begin))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_flow_that_is_cancelled_or_killed_leaves_no_process(state: Path, how: signal.Signals) -> None:
    given = {**GIVEN, "runner": "processes", "overrides": [*GIVEN["overrides"], "trainer.epochs=500", f"seed={how}"]}
    words = [f"{key}={value}".replace("'", '"') for key, value in given.items()]
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    flow = subprocess.Popen([sys.executable, "-m", "flows.retrain", *words], cwd=ROOT, env=environment)
    try:
        wait_until(lambda: len(checkpoints(state / "runs")) == 2 or flow.poll() is not None, 300)
        processes = psutil.Process(flow.pid).children(recursive=True)
        assert len(candidates()) == 2
        flow.send_signal(how)
        flow.wait(60)
    finally:
        flow.kill()
    _, alive = psutil.wait_procs(processes, 60)
    assert not alive
    experiment = tracking.experiment_id(EXPERIMENT)
    runs = tracking.connect().search_runs([experiment], f"params.seed = '{int(how)}'")
    assert [run.info.status for run in runs] == ["KILLED"] * 2
    assert all("goes on after epoch" in run.data.tags[tracking.DESCRIPTION] for run in runs)
    shutil.rmtree(state / "runs")


def test_trials_of_a_search_are_side_by_side(state: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="no Optuna: make scale")
    space = tmp_path / "space.yaml"
    space.write_text("trainer.lr: {low: 1e-3, high: 3e-3}")
    overrides = [*GIVEN["overrides"], "mlflow_experiment=trials"]
    rows = search(
        trials=3, space=str(space), model=MODELS[0], data="digits", overrides=overrides, runner="processes", cpus=1
    )
    assert [row["trial"] for row in rows] == [0, 1, 2]
    (journal,) = (state / "searches").iterdir()
    trials = Study(journal).trials
    assert all(trial.state.is_finished() and trial.value for trial in trials)
    assert trials[1].datetime_start < trials[0].datetime_complete
    runs = tracking.connect().search_runs([tracking.experiment_id("trials")], "tags.threads = '1'")
    assert {run.data.tags["mlflow.runName"] for run in runs} == {f"trial {number}" for number in range(3)}


@pytest.mark.parametrize(("asked", "words"), [({"cpus": 1000}, "cpus=1000"), ({"gpus": 9}, "gpus=9")])
def test_what_is_not_there_is_refused_before_any_work(asked: dict[str, int], words: str) -> None:
    assert_raises_in_words(UserError, lambda: retrain(**GIVEN, runner="processes", **asked), words, "no more than")


def test_ray_needs_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert_raises_in_words(UserError, lambda: retrain(**GIVEN, runner="ray"), "MLFLOW_TRACKING_URI=sqlite", "http")


def test_a_lost_node_costs_nothing(state: Path, one_after_another: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = state / "shared"
    monkeypatch.setenv("CHECKPOINTS", str(shared))
    with two_nodes() as nodes, ThreadPoolExecutor(1) as threads:

        def its_candidate_has_a_checkpoint() -> bool:
            there, begun = set(nodes.processes), checkpoints(shared)
            return any(process in there and key in begun for key, process in candidates().items())

        def lose_one() -> None:
            wait_until(its_candidate_has_a_checkpoint, 300)
            nodes.lose_one()

        begin = datetime.now(UTC)
        lost = threads.submit(lose_one)
        outcome, _ = trained("ray")
        lost.result()
        assert outcome == one_after_another
        wait_until(lambda: has_resumed(begin))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        assert_raises_in_words(
            UserError, lambda: retrain(**GIVEN, runner="ray"), "MLFLOW_TRACKING_URI=http://127", "does not see it"
        )
