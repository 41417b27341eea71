from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from tests.conftest import TINY, Trained, assert_user_error, state_in
from training import registry
from training.config import compose_config
from training.export import export_run
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
    decision = registry.better(answers(candidate), answers(champion), LABELS, "the champion")
    assert decision.promote is promoted
    assert f"{candidate:.2f}%" in decision.reason


def test_the_first_version_is_the_champion_with_its_reason(trained: Trained) -> None:
    champion = registry.champion()
    assert champion is not None
    assert str(champion.version) == trained.version
    assert champion.run_id == trained.run_id
    assert champion.tags["decision"] == "there was no champion"
    assert champion.tags["data"] == "digits"


def test_a_version_that_answers_alike_does_not_replace_the_champion(trained: Trained) -> None:
    version = registry.register(trained.run_id, export_run(trained.run_id))
    decision = registry.promote_if_better(version)
    champion = registry.champion()
    assert not decision.promote
    assert champion is not None
    assert str(champion.version) == trained.version
    challenger = registry.tracking.connect().get_model_version_by_alias(registry.REGISTERED_MODEL, "challenger")
    assert challenger.tags["decision"] == decision.reason


def test_a_repeated_call_finds_what_the_first_did(tmp_path: Path) -> None:
    """A task is tried again where an answer of the registry got lost on its way."""
    with state_in(tmp_path):
        run_id = train(compose_config([*TINY, "trainer.epochs=1", "model.weights=none"]))
        uri = export_run(run_id)
        versions = [registry.register(run_id, uri) for _ in range(2)]
        assert versions[0] == versions[1]
        decisions = [registry.promote_if_better(versions[0]) for _ in range(2)]
        assert decisions[0] == decisions[1]
        champion = registry.champion()
        assert champion is not None
        assert champion.tags["decision"] == decisions[0].reason


def test_rollback_puts_the_previous_champion_back(
    trained: Trained, tmp_path: Path, run_module: Callable[..., CompletedProcess[str]]
) -> None:
    with state_in(tmp_path):
        run_id = train(compose_config([*TINY, "trainer.epochs=1", "model.weights=none"]))
        first, second = (registry.register(run_id, export_run(run_id)) for _ in range(2))
        assert registry.promote_if_better(first).promote
        assert_user_error(run_module("training.registry", "rollback"), f"version {first}", "is the first")

        # A better second version: what the comparison says of it is not what this test is about.
        client = registry.tracking.connect()
        client.set_model_version_tag(registry.REGISTERED_MODEL, second, registry.PREVIOUS, first)
        client.set_registered_model_alias(registry.REGISTERED_MODEL, registry.CHAMPION, second)
        result = run_module("training.registry", "rollback")
        assert result.returncode == 0, result.stderr
        champion = registry.champion()
        assert champion is not None
        assert str(champion.version) == first
    assert_user_error(run_module("training.registry", "roll"), "rollback")
