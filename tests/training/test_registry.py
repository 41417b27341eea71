import numpy as np
import pytest

from tests.conftest import Trained
from training import registry


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
    from training.export import export_run

    version = registry.register(trained.run_id, export_run(trained.run_id))
    decision = registry.promote_if_better(version)
    champion = registry.champion()
    assert not decision.promote
    assert champion is not None
    assert str(champion.version) == trained.version
    challenger = registry.tracking.connect().get_model_version_by_alias(registry.REGISTERED_MODEL, "challenger")
    assert challenger.tags["decision"] == decision.reason
