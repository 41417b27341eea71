"""The registry's champion changes while the service answers."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import onnx
import pytest
from onnx import helper

from serving.model.errors import RegistryError
from serving.model.registry import DEFAULT_NAME, champion_uri, version_uri
from serving.model.runtime import runtimes
from serving.model.store import ModelStore
from tests.helpers.pictures import png
from tests.helpers.service import InProcess, Serve, metric, under_load
from tests.helpers.state import Trained, promote, with_metadata
from tests.helpers.waiting import wait_until


def doubled(trained: Trained) -> onnx.ModelProto:
    """A model whose probabilities add up to 2."""
    model = onnx.load(trained.onnx)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["half" if name == "probabilities" else name for name in node.output]
    graph.node.append(helper.make_node("Add", ["half", "half"], ["probabilities"]))
    return model


def with_classes(trained: Trained, classes: list[object]) -> onnx.ModelProto:
    return with_metadata(trained, classes=json.dumps(classes))


def for_pictures_of_the_self_test_alone(trained: Trained) -> onnx.ModelProto:
    model = onnx.load(trained.onnx)
    for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:3], (48, 64), strict=True):
        dimension.dim_value = size
    return model


def classify(client: httpx.Client) -> Callable[[int], httpx.Response]:
    return lambda _: client.post("/classify", files={"image": png()})


def version(client: httpx.Client) -> str:
    return str(client.get("/model").raise_for_status().json()["version"])


def changes(client: httpx.Client, outcome: str) -> float:
    return metric(client, "classifier_model_changes_total", outcome=outcome)


def test_a_new_champion_is_taken_without_losing_a_request(
    in_process: InProcess, trained: Trained, own_registry: Path
) -> None:
    with in_process(model=champion_uri(), poll_seconds=0.2) as client:
        taken = changes(client, "taken")
        with under_load(classify(client)) as answers:
            first = version(client)
            assert first == trained.version
            second = promote(trained)
            wait_until(lambda: version(client) == second)
            enough = len(answers) + 20
            wait_until(lambda: len(answers) > enough)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["model"]["version"] for answer in answers} == {first, second}
        assert metric(client, "classifier_model_info", version=second) == 1
        assert metric(client, "classifier_model_info") == 1, "the old version's series has ended"
        assert changes(client, "taken") == taken + 1


def test_a_version_that_fails_its_self_test_leaves_the_old_one(
    in_process: InProcess, trained: Trained, own_registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with in_process(model=champion_uri(), poll_seconds=0.2) as client:
        failed = changes(client, "failed")
        broken = promote(trained, doubled(trained))
        wait_until(lambda: changes(client, "failed") == failed + 1)
        assert version(client) == trained.version
        assert client.post("/classify", files={"image": png()}).status_code == 200
        assert f"version {broken} of {champion_uri()} does not work" in caplog.text
        assert "do not add up to 1" in caplog.text
        good = promote(trained)
        wait_until(lambda: version(client) == good)
        assert changes(client, "failed") == failed + 1, "it was tried once"
    # What starts now, with a broken champion, falls back on what the last one kept.
    promote(trained, doubled(trained))
    assert ModelStore(champion_uri(), own_registry, ("CPUExecutionProvider",)).load().version == good


@pytest.mark.parametrize(
    "classes",
    [list(range(10)), ["one"] * 10, ["", *"abcdefghi"], [], ["a"] + [None] * 9, list("abc")],
    ids=["numbers", "the same", "empty", "none", "null", "too few"],
)
def test_a_version_without_names_for_its_classes_is_broken(
    in_process: InProcess, trained: Trained, own_registry: Path, classes: list[object]
) -> None:
    with in_process(model=champion_uri(), poll_seconds=0.2) as client:
        failed = changes(client, "failed")
        promote(trained, with_classes(trained, classes))
        wait_until(lambda: changes(client, "failed") == failed + 1)
        assert version(client) == trained.version
        assert client.post("/classify", files={"image": png()}).status_code == 200


def test_a_version_that_fails_at_a_picture_that_the_old_one_answered_is_broken(
    in_process: InProcess, trained: Trained, own_registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with in_process(model=champion_uri(), poll_seconds=0.2) as client:
        failed = changes(client, "failed")
        client.post("/classify", files={"image": png()}).raise_for_status()
        promote(trained, for_pictures_of_the_self_test_alone(trained))
        wait_until(lambda: changes(client, "failed") == failed + 1)
        assert "no answer to a picture that was answered" in caplog.text
        assert version(client) == trained.version
        assert client.post("/classify", files={"image": png()}).status_code == 200


def with_bf16(trained: Trained, *, allowed: bool) -> onnx.ModelProto:
    said = {"precision": "bf16", "runtime": "openvino", "accuracy": 0.5, "changed": 0, "largest_change": 0, "speed": 2}
    return with_metadata(trained, measured=json.dumps([{**said, "allowed": allowed}]))


@pytest.mark.skipif(not runtimes("bf16"), reason="this CPU has no bf16")
def test_auto_follows_what_each_version_allows(in_process: InProcess, trained: Trained, own_registry: Path) -> None:
    """Under load: each answer says the precision of the version that gave it."""
    allowed = {promote(trained, with_bf16(trained, allowed=True)): "bf16"}
    with in_process(model=champion_uri(), poll_seconds=0.2, precision="auto") as client:
        with under_load(classify(client)) as answers:
            for precision in ("fp32", "bf16"):
                new = promote(trained, with_bf16(trained, allowed=precision == "bf16"))
                allowed[new] = precision
                wait_until(lambda new=new: version(client) == new)  # type: ignore[misc]
                enough = len(answers) + 20
                wait_until(lambda enough=enough: len(answers) > enough)  # type: ignore[misc]
        assert {answer.status_code for answer in answers} == {200}
        models = [answer.json()["model"] for answer in answers]
        assert {(model["version"], model["precision"]) for model in models} == allowed.items()


@pytest.mark.skipif(not runtimes("bf16"), reason="this CPU has no bf16")
def test_a_version_that_does_not_allow_the_precision_leaves_the_old_one(
    in_process: InProcess, trained: Trained, own_registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = promote(trained, with_bf16(trained, allowed=True))
    with in_process(model=champion_uri(), poll_seconds=0.2, precision="bf16") as client:
        assert client.get("/model").json()["precision"] == "bf16"
        failed = changes(client, "failed")
        promote(trained, with_bf16(trained, allowed=False))
        wait_until(lambda: changes(client, "failed") == failed + 1)
        assert version(client) == first
        assert "does not allow SERVING_PRECISION=bf16: its accuracy is 50.00%" in caplog.text
        third = promote(trained, with_bf16(trained, allowed=True))
        wait_until(lambda: version(client) == third)


def test_a_registry_that_goes_away_is_told_of_once(
    in_process: InProcess,
    trained: Trained,
    own_registry: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with in_process(model=champion_uri(), poll_seconds=0.2) as client:
        failed = changes(client, "failed")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        wait_until(lambda: changes(client, "failed") > failed + 1)
        assert version(client) == trained.version
        assert client.post("/classify", files={"image": png()}).status_code == 200
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len([record for record in warnings if "goes on serving" in record.getMessage()]) == 1
    store = ModelStore(champion_uri(), own_registry, ("CPUExecutionProvider",))
    assert store.load().version == trained.version, "the last good copy"
    with pytest.raises(RegistryError, match="does not answer"):
        ModelStore(champion_uri(), own_registry / "elsewhere", ("CPUExecutionProvider",)).load()


@pytest.mark.slow
def test_a_service_starts_without_a_registry_from_what_was_kept(
    serve: Serve, trained: Trained, own_registry: Path
) -> None:
    down = {"SERVING_MODEL": champion_uri(), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with serve(SERVING_MODEL=champion_uri()):
        pass
    with serve(**down) as served:
        assert httpx.post(f"{served.url}/classify", files={"image": png()}).status_code == 200
        assert "does not answer" in served.log.read_text()


def test_a_pinned_version_stays(in_process: InProcess, trained: Trained, own_registry: Path) -> None:
    pinned = version_uri(DEFAULT_NAME, trained.version)
    with (
        in_process(model=pinned, poll_seconds=0.2) as client,
        in_process(model=champion_uri(), poll_seconds=0.2) as follower,
    ):
        second = promote(trained)
        wait_until(lambda: version(follower) == second)
        assert version(client) == trained.version
