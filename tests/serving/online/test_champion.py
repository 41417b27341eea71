"""The registry's champion changes while the service answers."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import mlflow
import onnx
import pytest
from onnx import helper

from serving.model.registry import CHAMPION, CHAMPION_URI, REGISTERED_MODEL, version_uri
from tests.helpers.commands import assert_user_error, run_module
from tests.helpers.pictures import png
from tests.helpers.service import Serve, metric
from tests.helpers.state import Trained, state_in
from tests.helpers.waiting import wait_until
from training import tracking
from training.release import registry


@pytest.fixture
def own_registry(trained: Trained, state_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the tests' registry, so that its champion can change."""
    (tmp_path / "state").mkdir()
    shutil.copy(state_dir / "mlflow.db", tmp_path / "state" / "mlflow.db")
    with state_in(tmp_path / "state") as directory:
        yield directory


def promote(trained: Trained, model: onnx.ModelProto | None = None) -> str:
    """Registers the trained model, or an edited one, as the new champion; returns its version."""
    client = tracking.connect()
    with mlflow.start_run(run_id=trained.run_id):
        logged = mlflow.onnx.log_model(model or onnx.load(trained.onnx), name="onnx", save_as_external_data=False)
    version = registry.register(trained.run_id, logged.model_uri)
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    return version


def doubled(trained: Trained) -> onnx.ModelProto:
    """A model whose probabilities add up to 2."""
    model = onnx.load(trained.onnx)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["half" if name == "probabilities" else name for name in node.output]
    graph.node.append(helper.make_node("Add", ["half", "half"], ["probabilities"]))
    return model


def version(url: str) -> str:
    return httpx.get(f"{url}/model", timeout=30).raise_for_status().json()["version"]


def test_a_new_champion_is_taken_without_losing_a_request(serve: Serve, trained: Trained, own_registry: Path) -> None:
    with serve(SERVING_MODEL=CHAMPION_URI, SERVING_POLL_SECONDS="0.2") as served:
        answers: list[httpx.Response] = []
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(timeout=60) as client:
                while not stop.is_set():
                    answers.append(client.post(f"{served.url}/classify", files={"image": png()}))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            first = version(served.url)
            assert first == trained.version
            second = promote(trained)
            wait_until(lambda: version(served.url) == second)
            enough = len(answers) + 20
            wait_until(lambda: len(answers) > enough)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["model"]["version"] for answer in answers} == {first, second}
        assert metric(served.url, "classifier_model_info", version=second) == 1
        assert metric(served.url, "classifier_model_info") == 1, "the old version's series has ended"
        assert metric(served.url, "classifier_model_changes_total", outcome="taken") == 2


def test_a_version_that_fails_its_self_test_leaves_the_old_one(
    serve: Serve, trained: Trained, own_registry: Path
) -> None:
    with serve(SERVING_MODEL=CHAMPION_URI, SERVING_POLL_SECONDS="0.2") as served:
        broken = promote(trained, doubled(trained))
        wait_until(lambda: metric(served.url, "classifier_model_changes_total", outcome="failed") == 1)
        assert version(served.url) == trained.version
        assert httpx.post(f"{served.url}/classify", files={"image": png()}).status_code == 200
        log = served.log.read_text()
        assert f"version {broken} of {CHAMPION_URI} does not work" in log
        assert "do not add up to 1" in log
        good = promote(trained)
        wait_until(lambda: version(served.url) == good)
        assert metric(served.url, "classifier_model_changes_total", outcome="failed") == 1, "it was tried once"
    # A service that starts now, with a broken champion, falls back on what the last one kept.
    promote(trained, doubled(trained))
    with serve(SERVING_MODEL=CHAMPION_URI) as served:
        assert version(served.url) == good
        assert "does not work" in served.log.read_text()


def test_without_a_registry_the_kept_version_serves(serve: Serve, trained: Trained, own_registry: Path) -> None:
    down = {"SERVING_MODEL": CHAMPION_URI, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    assert_user_error(run_module("serving", **down), "http://127.0.0.1:9", "does not answer")
    with serve(SERVING_MODEL=CHAMPION_URI):
        pass
    with serve(**down, SERVING_POLL_SECONDS="0.2") as served:
        assert version(served.url) == trained.version
        assert httpx.post(f"{served.url}/classify", files={"image": png()}).status_code == 200
        assert "does not answer" in served.log.read_text()
        wait_until(lambda: metric(served.url, "classifier_model_changes_total", outcome="failed") > 1)
        assert served.log.read_text().count("goes on serving") == 1, "one warning, not one a poll"


def test_a_pinned_version_stays(serve: Serve, trained: Trained, own_registry: Path) -> None:
    pinned = version_uri(trained.version)
    with (
        serve(SERVING_MODEL=pinned, SERVING_POLL_SECONDS="0.2") as served,
        serve(SERVING_MODEL=CHAMPION_URI, SERVING_POLL_SECONDS="0.2") as follower,
    ):
        second = promote(trained)
        wait_until(lambda: version(follower.url) == second)
        assert version(served.url) == trained.version
