"""The flow against a real Prefect API, with its records looked up afterwards."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
import timm
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from pyarrow import parquet
from safetensors.torch import save_file

from flows.retrain import data_overrides, retrain
from serving.model.errors import UserError
from serving.model.registry import DEFAULT_NAME, champion_uri
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.servers import FlowRun, Server, prefect_server, process_worker, shell_environment
from tests.helpers.state import ROOT, TINY_OVERRIDES, state_in
from tests.helpers.waiting import free_port, wait_until
from training import tracking
from training.config import compose
from training.release import registry
from training.train import read, run_key

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
        overrides=[
            *TINY_OVERRIDES,
            "model.backbone=tf_efficientnet_lite0",
            "model.weights=package",
            "trainer.num_workers=1",  # a process that is forked from one with Prefect's threads
        ],
    )
    registered = tracking.connect().get_model_version(DEFAULT_NAME, version)
    assert registered.tags["decision"]
    with get_client(sync_client=True) as api:
        runs = api.read_flow_runs(flow_run_filter=FlowRunFilter())
        assert [run.parameters["models"] for run in runs if run.state and run.state.is_completed()] == [models]
        artifacts = {artifact.key: artifact for artifact in api.read_artifacts()}
    assert str(artifacts["candidates"].data).count("MLflow run") == 2
    assert registered.tags["decision"] in str(artifacts["decision"].data)


@pytest.fixture
def without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client is the real one, told that it is offline and with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def candidates() -> list[dict[str, str]]:
    """The latest table of the candidates, as the flow run's page shows it."""
    with get_client(sync_client=True) as api:
        found = [artifact for artifact in api.read_artifacts() if artifact.key == "candidates"]
    rows: list[dict[str, str]] = json.loads(str(max(found, key=lambda artifact: str(artifact.created)).data))
    return rows


def finished_runs() -> int:
    experiment = tracking.experiment_id(compose([]).mlflow_experiment)
    return len(tracking.connect().search_runs([experiment], "attributes.status = 'FINISHED'"))


@pytest.mark.usefixtures("prefect_api", "without_a_hub")
def test_candidates_that_fail_are_rows_and_the_best_of_the_others_is_registered() -> None:
    """One whose weights are out of reach, and one that fails once it is to be trained: another process trains it."""
    overrides = [*TINY_OVERRIDES, "seed=1"]
    settings, data = read(compose(["data=digits", "experiment=quick", *overrides, "model=efficientnet_lite1"]))
    lock = settings.state_dir / "locks" / run_key(settings, data)
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        models = ["resnet18", "efficientnet_lite1", "efficientnet_lite0"]
        version = retrain(models=models, data="digits", overrides=overrides)
    run = tracking.connect().get_run(str(tracking.connect().get_model_version(DEFAULT_NAME, version).run_id))
    assert run.data.tags["model"] == "efficientnet_lite0"
    remarks = {row["model"]: row["remark"] for row in candidates()}
    assert remarks["efficientnet_lite0"] == ""
    assert remarks["resnet18"].startswith("failed: the weights of resnet18 can't be fetched from timm's hub")
    assert remarks["efficientnet_lite1"].startswith("failed: this exact run is already in progress")


@pytest.mark.usefixtures("prefect_api", "without_a_hub")
def test_where_all_candidates_fail_the_flow_fails_and_lists_them() -> None:
    models = ["resnet18", "densenet121"]
    assert_raises_in_words(UserError, lambda: retrain(models=models, data="digits"), "no candidate is left", *models)
    assert [row["model"] for row in candidates()] == models


def test_a_wrong_setting_of_the_last_candidate_refuses_all(prefect_api: None, tmp_path: Path) -> None:
    """What only its weights show: the checkpoint is another model's."""
    weights = tmp_path / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    before = finished_runs()
    given = {"models": ["test_resnet", "test_vit"], "data": "digits"}
    overrides = [*TINY_OVERRIDES, f"model.weights={weights}"]
    assert_raises_in_words(UserError, lambda: retrain(**given, overrides=overrides), str(weights), "of test_vit")
    assert finished_runs() == before, "the first was not trained"


def test_what_is_finished_is_found_with_its_version(
    prefect_api: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit, and whether files differ from it, are those of a repository that git is pointed at."""
    monkeypatch.setenv("MODEL_NAME", "found")
    repository = tmp_path / "repository"
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "--message=a"]
    for command in (["init", "--quiet", str(repository)], ["-C", str(repository), *commit]):
        subprocess.run(["git", *command], check=True)
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repository))

    def ask(*overrides: str, force: bool = False) -> tuple[str, int]:
        """The version, and how many runs were trained for it."""
        before = finished_runs()
        version = retrain(data="digits", overrides=[*TINY_OVERRIDES, "seed=2", *overrides], force=force)
        return version, finished_runs() - before

    assert ask() == ("1", 1)
    assert ask() == ("1", 0)
    assert candidates()[0]["remark"].startswith("finished before")
    assert ask("export.half_loss=1.0") == ("2", 1), "it is exported by other settings"
    assert ask(force=True) == ("3", 1)
    (repository / "changed").touch()
    assert ask() == ("4", 1), "the changes may be to the program"


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


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A process worker that has deployed, with a Prefect server of its own, at which its environment points."""
    directory, port = tmp_path_factory.mktemp("worker"), free_port()
    environment = {**shell_environment(directory), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with prefect_server(directory, environment, port), process_worker(directory, environment) as worker:
        yield worker


def watched(worker: Server, deployment: str, *parameters: str) -> subprocess.CompletedProcess[str]:
    """What a user sees of a run that is asked for and watched; the lines as long as they are."""
    given = [word for parameter in parameters for word in ("-p", parameter)]
    command = ["prefect", "deployment", "run", deployment, *given, "--watch"]
    environment = {**worker.environment, "COLUMNS": "1000"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_deployments_run_on_a_process_worker(worker: Server, tmp_path: Path, image_folder: Path) -> None:
    overrides = json.dumps([*TINY_OVERRIDES, "trainer.processes=2"])
    parameters = [
        'models=["efficientnet_lite0"]',
        "experiment=quick",
        "data=digits",
        f"overrides={overrides}",
        "force=true",
        "runner=processes",
    ]
    asked = watched(worker, "retrain/local", *parameters)
    assert asked.returncode == 0, asked.stdout + asked.stderr + worker.log.read_text()
    logs = worker.log.read_text()
    assert "validation accuracy" in logs, "the training's progress is in the flow run's log"
    assert "on this machine alone" not in logs, "the server lends the lock of promotions, which was deployed"

    target = tmp_path / "out.parquet"
    asked = watched(worker, "batch-predict/local", f"source={image_folder}", f"target={target}")
    assert asked.returncode == 0, asked.stdout + asked.stderr + worker.log.read_text()
    assert parquet.read_metadata(target).num_rows == 24

    pytest.importorskip("optuna", reason="make scale")
    asked = watched(worker, "search/local", "trials=1", "data=digits", f"overrides={json.dumps(TINY_OVERRIDES)}")
    assert asked.returncode == 0, asked.stdout + asked.stderr + worker.log.read_text()
    (experiment,) = tracking.state_dir().glob("experiment/*.yaml")
    assert f"python -m training.train experiment={experiment.stem}" in asked.stdout, "the run's log says how to go on"


def test_a_run_of_two_processes_that_is_cancelled_leaves_none_behind(worker: Server) -> None:
    overrides = [*TINY_OVERRIDES, "trainer.epochs=100000", "trainer.processes=2"]
    parameters = {"data": "digits", "overrides": overrides}
    run = FlowRun.asked_for(worker.environment, worker, "retrain/local", parameters)
    run.says("epoch 1 of 100000")
    assert len(list(run.processes())) > 2
    run.cancel()
    run.ends("CANCELLED")
    wait_until(lambda: not list(run.processes()))
    run.says("it goes on after epoch")


def test_a_watched_run_that_fails_says_why_in_words_of_the_flow(worker: Server, tmp_path: Path) -> None:
    reason = f"UserError: data={tmp_path}: there are no folders of classes"
    asked = watched(worker, "retrain/local", f"data={tmp_path}")
    assert asked.returncode == 1
    assert reason in asked.stdout
    (run_id,) = re.findall(r"UUID: (\S+)", asked.stdout)
    run = FlowRun(worker.environment["PREFECT_API_URL"], run_id, worker)
    assert reason in run.record["state"]["message"]


def test_a_parameter_that_the_flow_does_not_have_is_refused_by_the_api(worker: Server) -> None:
    api = worker.environment["PREFECT_API_URL"]
    for name in ("retrain", "batch-predict", "rollback", "search"):
        deployment = httpx.get(f"{api}/deployments/name/{name}/local").raise_for_status().json()
        given = {"source": "a", "target": "b"} if name == "batch-predict" else {}
        answer = httpx.post(
            f"{api}/deployments/{deployment['id']}/create_flow_run", json={"parameters": {**given, "modles": ["a"]}}
        )
        assert answer.status_code == 409, answer.text
        assert "'modles' was unexpected" in answer.text
