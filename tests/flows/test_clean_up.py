"""The flow that frees what nobody needs: on a real Prefect API, and behind an MLflow server."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from mlflow.exceptions import MlflowException
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Running, State

from flows.clean_up import FLOWS, clean_up, free_containers, free_flow_runs
from flows.retrain import retrain
from tests.helpers.servers import mlflow_server, shell_environment
from tests.helpers.state import ROOT, state_in
from tests.helpers.waiting import free_port
from training import tracking

LONG_AGO = datetime.now(UTC) - timedelta(days=31)


@flow(name="of-others")
def of_others() -> None: ...


def test_the_runs_of_all_our_flows_are_looked_at() -> None:
    deployments = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())["deployments"]
    names = {each["entrypoint"].rpartition(":")[2].replace("_", "-") for each in deployments}
    assert names == set(FLOWS)


@pytest.fixture
def own_state(prefect_api: None, tmp_path: Path) -> Iterator[Path]:
    api = PREFECT_API_URL.value()
    with state_in(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(api))  # for processes of their own
        yield tmp_path


def by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in rows}


def flow_run(what: Flow[..., Any], state: State) -> UUID:
    with get_client(sync_client=True) as api:
        run_id = api.create_flow_run(what, parameters={}).id
        api.set_flow_run_state(run_id, state, force=True)
    return run_id


@pytest.mark.slow
def test_prefect_s_runs_are_deleted_when_they_are_old_and_ended_and_ours(own_state: Path) -> None:
    old = flow_run(retrain, Completed())
    kept = {flow_run(retrain, Running()), flow_run(of_others, Completed())}
    before = datetime.now(UTC)
    kept.add(flow_run(retrain, Completed()))

    def there() -> set[UUID]:
        with get_client(sync_client=True) as api:
            return {run.id for run in api.read_flow_runs()}

    for dry_run in (True, False):
        (row,) = free_flow_runs.fn(before, dry_run)
        assert row["number"] == 1
        assert there() & {old, *kept} == ({old, *kept} if dry_run else kept)

    rows = by_kind(clean_up(dry_run=True))
    assert rows["containers"]["which"].startswith("left out: containers=true")
    with get_client(sync_client=True) as api:
        (artifact,) = (each for each in api.read_artifacts() if each.key == "clean-up")
    assert "a dry run" in str(artifact.description)
    assert "Prefect's runs" in str(artifact.data)


@pytest.mark.slow
def test_an_mlflow_server_s_runs_are_freed_with_its_database_and_else_marked(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, artifacts = free_port(), own_state / "artifacts"
    store = f"sqlite:///{own_state}/server.db"
    with mlflow_server(own_state, shell_environment(own_state / "server"), port, store, str(artifacts)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        client = tracking.connect()
        experiment, at = tracking.experiment_id("cifar10"), int(LONG_AGO.timestamp() * 1000)
        run_id = client.create_run(experiment, at, {"data_fingerprint": "0"}).info.run_id
        client.log_text(run_id, "0" * 10**6, "losses.txt")
        client.set_terminated(run_id, end_time=at)

        rows = by_kind(clean_up(keep_runs=0))
        assert (rows["MLflow runs"]["number"], rows["MLflow runs"]["MB"]) == (1, 1.0)
        assert "MLFLOW_BACKEND_STORE_URI" in rows["MLflow runs"]["which"]
        assert client.get_run(run_id).info.lifecycle_stage == "deleted"
        assert list(artifacts.rglob("losses.txt"))

        monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", store)
        rows = by_kind(clean_up())
        assert rows["MLflow runs"]["which"] == run_id
        assert not list(artifacts.rglob("losses.txt"))
        with pytest.raises(MlflowException):
            client.get_run(run_id)


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    (row,) = free_containers.fn(LONG_AGO, dry_run=False)
    assert row["which"].startswith("left out: the container engine does not answer")
