"""Registration, promotion by a paired test, and the way back."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from serving.model.errors import UserError
from serving.model.registry import CHAMPION, DEFAULT_NAME, version_uri
from tests.helpers.state import TINY, Trained, state_in
from training import tracking
from training.config import compose
from training.release import registry
from training.release.candidate import export_run
from training.release.promotion import better, promote_if_better
from training.train import train


def answers(right: int, total: int = 100) -> np.ndarray:
    """Probabilities of two classes for pictures of class 0, the first `right` of them right."""
    probabilities = np.tile([0.1, 0.9], (total, 1))
    probabilities[:right] = [0.9, 0.1]
    return probabilities


LABELS = np.zeros(100, np.int64)


@pytest.mark.parametrize(
    ("candidate", "champion", "promoted"), [(90, 80, True), (82, 80, False), (80, 80, False), (70, 90, False)]
)
def test_a_candidate_must_be_better_by_more_than_chance(candidate: int, champion: int, promoted: bool) -> None:
    decision = better(answers(candidate), answers(champion), LABELS, "the champion")
    assert decision.promote is promoted
    assert f"{candidate:.2f}%" in decision.reason


def test_a_test_set_that_is_too_small_to_tell_says_so() -> None:
    """Of five pictures that only one of two models gets right, all have to be gained; a thousand pictures tell more."""
    decision = better(answers(82), answers(80), LABELS, "the champion")
    assert "too small to tell a difference of less than 5.0%" in decision.reason
    assert "82.00% [73.3% to 88.3%] does not beat the 80.00% [71.1% to 86.7%]" in decision.reason
    thousand = better(answers(802, 1000), answers(800, 1000), np.zeros(1000, np.int64), "the champion")
    assert "too small" not in thousand.reason
    assert better(answers(85), answers(80), LABELS, "the champion").promote, "the difference that was named counts"


def champion_version() -> str:
    champion = registry.champion(DEFAULT_NAME)
    assert champion is not None
    return str(champion.version)


def test_the_first_version_is_the_champion_with_its_reason(trained: Trained) -> None:
    champion = registry.champion(DEFAULT_NAME)
    assert champion is not None
    assert str(champion.version) == trained.version
    assert champion.run_id == trained.run_id
    assert champion.tags["decision"] == "there was no champion"
    assert champion.tags["data"] == "digits"


def test_a_version_says_what_it_is_and_how_it_is_used(trained: Trained) -> None:
    described = tracking.connect().get_model_version(DEFAULT_NAME, trained.version).description
    accuracy = tracking.connect().get_run(trained.run_id).data.metrics["test_accuracy"]
    uri = version_uri(DEFAULT_NAME, trained.version)
    for words in (
        "trained on **digits**",
        "**Pictures**: 320 for train, 100 for validation, 200 for test",
        "**Classes** (10): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        f"**Test accuracy**: {accuracy:.2%} [",
        "**Precisions beside float32**: bf16",
        f"`SERVING_MODEL={uri} python -m serving`",
    ):
        assert words in described
    assert described.endswith("**Decision**: promoted: there was no champion")

    # What is to be loaded as it says, it does, on a picture of the test set.
    loading = re.findall(r"```python\n(.*)```", described, re.DOTALL)[0]
    assert f'"{uri}"' in loading
    names: dict[str, Any] = {"mlflow": mlflow}
    exec(loading.replace("model.predict", "answer = model.predict"), names)
    picture = names["model"].input_example["images"]
    assert (picture.dtype, picture.shape) == (np.uint8, (1, 8, 8, 3))
    assert names["answer"].shape == (1, 10)


def test_a_version_that_answers_alike_does_not_replace_the_champion(trained: Trained) -> None:
    version = registry.register(trained.run_id, export_run(trained.run_id), DEFAULT_NAME)
    decision = promote_if_better(version, DEFAULT_NAME)
    assert not decision.promote
    assert champion_version() == trained.version
    challenger = tracking.connect().get_model_version_by_alias(DEFAULT_NAME, "challenger")
    assert str(challenger.version) == version
    assert challenger.tags["decision"] == decision.reason


@pytest.mark.slow
def test_a_repeated_call_finds_what_the_first_did_and_rollback_puts_the_champion_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A task is tried again where an answer of the registry got lost on its way, perhaps while the first is at work."""
    with state_in(tmp_path):
        run_id = train(compose([*TINY, "trainer.epochs=1", "model.weights=none"]))
        uri = export_run(run_id)
        with ThreadPoolExecutor(4) as at_once:
            first, *again = at_once.map(lambda _: registry.register(run_id, uri, DEFAULT_NAME), range(4))
        assert {first, *again} == {registry.register(run_id, uri, DEFAULT_NAME)}
        decisions = [promote_if_better(first, DEFAULT_NAME) for _ in range(2)]
        assert decisions[0] == decisions[1]
        assert decisions[0].promote
        champion = registry.champion(DEFAULT_NAME)
        assert champion is not None
        assert champion.tags["decision"] == decisions[0].reason
        with pytest.raises(UserError, match=f"version {first}, is the first"):
            registry.rollback(DEFAULT_NAME)

        # A better second version: what the comparison says of it is not what this test is about.
        client = tracking.connect()
        second = str(client.create_model_version(DEFAULT_NAME, uri, run_id).version)
        client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, second)
        caplog.set_level(logging.INFO)
        assert registry.rollback(DEFAULT_NAME) == first == champion_version()
        assert f"version {first} is the champion again" in caplog.text


def test_a_version_that_is_the_champion_again_keeps_those_before_it(tmp_path: Path) -> None:
    with state_in(tmp_path):
        client = tracking.connect()
        client.create_registered_model(DEFAULT_NAME)
        first, second, third = (str(client.create_model_version(DEFAULT_NAME, "s3://a").version) for _ in range(3))
        for version in (first, second, first, third):
            registry.crown(DEFAULT_NAME, [*registry.history(DEFAULT_NAME), version])
        assert [registry.rollback(DEFAULT_NAME) for _ in range(3)] == [first, second, first]
        with pytest.raises(UserError, match="there is none to go back to"):
            registry.rollback(DEFAULT_NAME)


def test_a_version_that_was_deleted_is_not_gone_back_to(tmp_path: Path) -> None:
    with state_in(tmp_path):
        client = tracking.connect()
        client.create_registered_model(DEFAULT_NAME)
        first, second = (str(client.create_model_version(DEFAULT_NAME, "s3://a").version) for _ in range(2))
        client.set_model_version_tag(DEFAULT_NAME, second, registry.PREVIOUS, first)
        client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, second)
        client.delete_model_version(DEFAULT_NAME, first)
        with pytest.raises(UserError, match=r"what was the champion before it is deleted \(1\)"):
            registry.rollback(DEFAULT_NAME)
        assert champion_version() == second


def test_without_a_champion_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    with state_in(tmp_path), pytest.raises(UserError, match="has no champion"):
        registry.rollback(DEFAULT_NAME)
