"""What runs a retraining is stopped, or dies: the run ends with its reason, and the next one has room."""

import re
import time
from collections.abc import Iterator

import mlflow
import pytest
from mlflow.entities import Run

from tests.helpers.retraining import ask, hurried_stack, in_mid_training
from tests.helpers.servers import SECONDS_TO_RUN, FlowRun, Stack
from tests.helpers.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FOR_HOURS = 100_000  # epochs


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with hurried_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def tracked(stack: Stack, seed: int) -> Run:
    """The run in MLflow."""
    client = mlflow.MlflowClient(stack.environment["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["0", "1"], f"params.seed = '{seed}'")
    return run


def assert_killed(stack: Stack, seed: int) -> None:
    """MLflow has the run as killed, and its page says from where it goes on."""
    run = tracked(stack, seed)
    assert run.info.status == "KILLED"
    assert re.search(rf"goes on after epoch \d+ of {FOR_HOURS}", run.data.tags["mlflow.note.content"])


def waits_for_the_slot(run: FlowRun) -> None:
    wait_until(lambda: run.record["state_name"] == "AwaitingConcurrencySlot", SECONDS_TO_RUN)


def test_a_run_keeps_its_slot_over_an_outage_and_can_be_cancelled_after_it(stack: Stack) -> None:
    run = in_mid_training(stack, 11, FOR_HOURS)
    stack.prefect.kill()
    time.sleep(60)  # what is tested; after some 40 the worker no longer listens whether to cancel
    stack.prefect.start()
    following = ask(stack, 12, epochs=1)
    waits_for_the_slot(following)
    run.cancel()
    run.ends("CANCELLED")
    assert_killed(stack, 11)
    following.ends("COMPLETED")


@pytest.mark.parametrize(("seed", "phase"), [(21, "PENDING"), (22, "RUNNING")])
def test_the_next_run_has_room_when_all_was_killed_at_once(stack: Stack, seed: int, phase: str) -> None:
    run = ask(stack, seed, FOR_HOURS)
    run.reaches(phase)
    for part in (stack.prefect, stack.worker, run):
        part.kill()
    stack.prefect.start()
    assert run.record["state_type"] == phase
    stack.worker.start()
    ask(stack, seed + 10, epochs=1).ends("COMPLETED")
    run.reaches("CRASHED")


def test_a_worker_that_is_stopped_cancels_its_run_and_says_which(stack: Stack) -> None:
    run = in_mid_training(stack, 41, FOR_HOURS)
    following = ask(stack, 42, epochs=1)
    waits_for_the_slot(following)
    stack.worker.stop()
    assert run.record["state_type"] == "CANCELLED", run.log
    assert f"stopping: run {run.record['name']} is cancelled" in stack.worker.log.read_text()
    assert_killed(stack, 41)
    assert following.record["state_type"] == "SCHEDULED", "what waits is left to the next worker"
    stack.worker.start()
    following.ends("COMPLETED")


def test_a_worker_that_is_stopped_while_the_server_is_away_lets_its_run_tell_mlflow(stack: Stack) -> None:
    in_mid_training(stack, 51, FOR_HOURS)
    stack.prefect.kill()
    stack.worker.stop()
    assert "not cancelled in time by Prefect" in stack.worker.log.read_text()
    assert_killed(stack, 51)
