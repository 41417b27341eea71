"""The artifact storage is away for a while: the task is tried again, and the flow completes."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas import TaskRun
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext
from pyarrow import parquet

from flows.batch_predict import batch_predict
from flows.retrain import export, promote_if_better
from serving.model.errors import UserError
from serving.model.registry import DEFAULT_NAME
from tests.helpers.servers import Storage, mlflow_server, shell_environment
from tests.helpers.state import TINY, state_in
from tests.helpers.waiting import free_port, wait_until
from training.config import compose
from training.release.candidate import export_run
from training.release.promotion import promote_if_better as promote
from training.release.registry import register
from training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """S3 behind an MLflow server that this process asks, and that it does not ask again for minutes."""
    directory = tmp_path_factory.mktemp("storage")
    servers, port = shell_environment(directory), free_port()
    with Storage(directory, servers) as storage:
        servers |= storage.environment
        with (
            mlflow_server(directory, servers, port, f"sqlite:///{directory}/mlflow.db", "s3://mlflow"),
            state_in(directory / "state"),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            yield storage


@pytest.fixture(scope="module")
def run_id(storage: Storage) -> str:
    """A trained run whose model is the champion."""
    run_id = train(compose([*TINY, "trainer.epochs=1"]))
    promote(register(run_id, export_run(run_id), DEFAULT_NAME), DEFAULT_NAME)
    return run_id


def current_run() -> str:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return str(context.flow_run.id)


def tasks_of(flow_run: str) -> list[TaskRun]:
    with get_client(sync_client=True) as api:
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
        return list(api.read_task_runs(flow_run_filter=chosen))


def tried(storage: Storage, work: Callable[[], Any]) -> list[int]:
    """Runs tasks while the storage is away, gives it back after the first failure; how often each was tried."""
    started: list[str] = []

    @flow
    def outage() -> None:
        started.append(current_run())
        work()

    def give_back() -> None:
        def failed_once() -> bool:
            return bool(started) and any(run.state_name == "AwaitingRetry" for run in tasks_of(started[0]))

        wait_until(failed_once)
        storage.refuse(False)

    storage.refuse(True)
    helper = threading.Thread(target=give_back)
    helper.start()
    try:
        outage()
    finally:
        storage.refuse(False)
        helper.join()
    return [run.run_count for run in tasks_of(started[0])]


def test_export_is_tried_again(storage: Storage) -> None:
    run_id = train(compose([*TINY, "trainer.epochs=1", "seed=2"]))
    assert tried(storage, lambda: export(run_id)) == [2]
    assert export.fn(run_id) == export.fn(run_id), "what is exported is not exported again"


def test_promotion_is_tried_again(storage: Storage, run_id: str) -> None:
    version = register(run_id, export_run(run_id), DEFAULT_NAME)
    decisions: list[bool] = []
    assert tried(storage, lambda: decisions.append(promote_if_better(version, DEFAULT_NAME))) == [2]
    assert decisions == [False], "the champion was compared with"


def test_batch_prediction_is_tried_again(storage: Storage, run_id: str, image_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    batch = batch_predict.fn
    assert tried(storage, lambda: batch(image_folder, target)) == [2]
    assert parquet.read_metadata(target).num_rows == 24


def test_a_wrong_setting_is_not_tried_again(run_id: str, image_folder: Path, tmp_path: Path) -> None:
    started: list[str] = []

    @flow
    def wrong() -> None:
        started.append(current_run())
        batch_predict.fn(image_folder, tmp_path / "out.parquet", "models:/nobody/1")

    with pytest.raises(UserError, match="models:/nobody/1 is not in the registry"):
        wrong()
    assert [run.run_count for run in tasks_of(started[0])] == [1]
