"""The flow against a real Prefect API, with its records looked up afterwards."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from pyarrow import parquet

from flows.retrain import data_overrides, retrain
from tests.conftest import ROOT, TINY_OVERRIDES, assert_user_error, free_port, state_in
from tests.servers import prefect_server, process_worker, shell_environment
from training import registry
from training.config import compose_config
from training.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """These runs register and promote: in a registry of their own."""
    with state_in(tmp_path_factory.mktemp("flows")):
        yield


def test_it_trains_candidates_and_registers_the_best(prefect_api: None) -> None:
    version = retrain(
        models=["efficientnet_lite0", "timm"],
        data="digits",
        overrides=[*TINY_OVERRIDES, "model.backbone=tf_efficientnet_lite0", "model.weights=package"],
    )
    client = registry.tracking.connect()
    registered = client.get_model_version(registry.REGISTERED_MODEL, version)
    assert registered.tags["decision"]
    with get_client(sync_client=True) as api:
        (run,) = api.read_flow_runs(flow_run_filter=FlowRunFilter())
        assert run.state is not None
        assert run.state.is_completed()
        artifacts = {artifact.key: artifact for artifact in api.read_artifacts()}
    assert str(artifacts["candidates"].data).count("MLflow run") == 2
    assert registered.tags["decision"] in str(artifacts["decision"].data)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"data": "/no/such/place"}', ["/no/such/place", "cifar10 or digits"]),
        ("digits", ["digits"]),
        ('["digits"]', ["models, experiment, data"]),
        ('{"modles": []}', ["modles", "'models', 'experiment', 'data'"]),
        ('{"models": []}', ["models", "at least 1"]),
        ('{"data": "digits", "overrides": ["trainer.epochs=0"]}', ["trainer.epochs=0"]),
        (
            '{"data": "digits", "models": ["resnet18"], "overrides": ["model.weights=/no.safetensors"]}',
            ["/no.safetensors"],
        ),
    ],
)
def test_a_mistake_ends_the_command_with_code_2(
    arguments: str, words: list[str], run_module: Callable[..., CompletedProcess[str]]
) -> None:
    assert_user_error(run_module("flows.retrain", arguments), *words)


def test_data_is_a_name_or_a_path(tmp_path: Path) -> None:
    assert data_overrides("digits") == ["data=digits"]
    odd = tmp_path / "Ann's pictures, all"
    odd.mkdir()
    config = compose_config(data_overrides(str(odd)))
    assert (config.data.root, config.data.name) == (str(odd), "Ann's pictures, all")
    with pytest.raises(UserError, match="no such path"):
        data_overrides("")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Prefect server of its own; yields the environment that points at it."""
    port = free_port()
    environment = {**shell_environment(tmp_path), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with prefect_server(tmp_path, environment, port):
        yield environment


def test_the_deployments_run_on_a_process_worker(server: dict[str, str], tmp_path: Path, image_folder: Path) -> None:
    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=ROOT, env=server, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    with process_worker(tmp_path, server) as worker:
        overrides = str(TINY_OVERRIDES).replace("'", '"')
        parameters = ['models=["efficientnet_lite0"]', "experiment=quick", "data=digits", f"overrides={overrides}"]
        output = run(
            "prefect",
            "deployment",
            "run",
            "retrain/local",
            *(word for p in parameters for word in ("-p", p)),
            "--watch",
        )
        assert "Completed" in output, output + worker.log.read_text()
        logs = worker.log.read_text()
        assert "validation accuracy" in logs, "the training's progress is in the flow run's log"

        target = tmp_path / "out.parquet"
        paths = ["-p", f"source={image_folder}", "-p", f"target={target}"]
        output = run("prefect", "deployment", "run", "batch-predict/local", *paths, "--watch")
        assert "Completed" in output, output + worker.log.read_text()
        assert parquet.read_metadata(target).num_rows == 24
