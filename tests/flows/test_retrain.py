"""The flow against a real Prefect API, with its records looked up afterwards."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from pyarrow import parquet

from flows.retrain import data_overrides, retrain
from serving.model.errors import UserError
from serving.model.registry import DEFAULT_NAME, champion_uri
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.servers import prefect_server, process_worker, shell_environment
from tests.helpers.state import ROOT, TINY_OVERRIDES, state_in
from tests.helpers.waiting import free_port
from training import tracking
from training.config import compose
from training.release import registry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """These runs register and promote: in a registry of their own."""
    with state_in(tmp_path_factory.mktemp("flows")):
        yield


def test_a_mistake_is_refused_before_any_work(prefect_api: None) -> None:
    for parameters, words in [
        ({"data": "/no/such/place"}, ["/no/such/place", "cifar10 or digits"]),
        ({"data": "digits", "overrides": ["trainer.epochs=0"]}, ["trainer.epochs=0"]),
        ({"data": "digits", "models": ["efficientnet_lite0", "resnet19"]}, ["resnet19", "densenet121"]),
        ({"data": "digits", "models": ["resnet18"], "overrides": ["model.weights=/no.safetensors"]}, ["/no.safetenso"]),
    ]:
        assert_raises_in_words(UserError, lambda given=parameters: retrain(**given), *words)
    assert not tracking.state_dir().joinpath("cache").exists()


def test_it_trains_candidates_and_registers_the_best(prefect_api: None) -> None:
    models = ["efficientnet_lite0", "timm"]
    version = retrain(
        models=models,
        data="digits",
        overrides=[*TINY_OVERRIDES, "model.backbone=tf_efficientnet_lite0", "model.weights=package"],
    )
    registered = tracking.connect().get_model_version(DEFAULT_NAME, version)
    assert registered.tags["decision"]
    with get_client(sync_client=True) as api:
        runs = api.read_flow_runs(flow_run_filter=FlowRunFilter())
        assert [run.parameters["models"] for run in runs if run.state and run.state.is_completed()] == [models]
        artifacts = {artifact.key: artifact for artifact in api.read_artifacts()}
    assert str(artifacts["candidates"].data).count("MLflow run") == 2
    assert registered.tags["decision"] in str(artifacts["decision"].data)


def test_tasks_live_side_by_side_and_a_renamed_class_is_none_of_them(
    prefect_api: None, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_NAME", "colours")
    client = tracking.connect()
    experiment = tracking.experiment_id(compose([]).mlflow_experiment)
    given = {"data": str(image_folder), "overrides": ["model.image_size=32", "data.validation_fraction=0.25"]}
    digits = registry.champion(DEFAULT_NAME)
    assert retrain(**given) == "1"
    assert champion_uri() == "models:/colours@champion"
    if digits:
        champion = registry.champion(DEFAULT_NAME)
        assert champion is not None
        assert champion.version == digits.version

    for split in ("train", "test"):
        (image_folder / split / "red").rename(image_folder / split / "crimson")
    runs = len(client.search_runs([experiment]))
    assert_raises_in_words(
        UserError, lambda: retrain(**given), "green, red;", "crimson, green.", "replace_classes=true"
    )
    assert len(client.search_runs([experiment])) == runs, "nothing was trained"

    version = retrain(**given, replace_classes=True)
    champion = registry.champion("colours")
    assert champion is not None
    assert champion.version == int(version)
    assert "knows other classes" in champion.tags["decision"]


def test_data_is_a_name_or_a_path(tmp_path: Path) -> None:
    assert data_overrides("digits") == ["data=digits"]
    odd = tmp_path / "Ann's pictures, all (1)"
    odd.mkdir()
    settings = compose(data_overrides(str(odd)))
    assert (settings.data.root, settings.data.name) == (str(odd), odd.name)
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
