"""Two promotions at once, rollbacks that hold, and the history of champions: on one real registry."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.model.registry import CHALLENGER, CHAMPION, DEFAULT_NAME
from tests.helpers.state import ROOT, TINY, state_in
from training import tracking
from training.config import compose
from training.release import registry
from training.release.candidate import export_run
from training.release.promotion import promote_if_better
from training.train import train

pytestmark = pytest.mark.slow

# Promotes the versions that it reads, a line each.
PROMOTES = f"""
import sys
from training.release.promotion import promote_if_better
print("ready", flush=True)
for line in sys.stdin:
    promote_if_better(line.strip(), {DEFAULT_NAME!r})
    print("done", flush=True)
"""
ROUNDS = 6


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Three versions in a registry of their own: a bad one, which is the champion, a better one and the best."""
    with state_in(tmp_path_factory.mktemp("promotion")):
        found = []
        for changes in (["trainer.epochs=1", "trainer.lr=1e-9"], ["trainer.epochs=1"], ["trainer.epochs=5"]):
            run_id = train(compose([*TINY, *changes]))
            found.append(registry.register(run_id, export_run(run_id), DEFAULT_NAME))
        promote_if_better(found[0], DEFAULT_NAME)
        bad, better, best = found
        yield bad, better, best


@pytest.fixture(autouse=True)
def bad_one_is_the_champion(versions: tuple[str, str, str]) -> None:
    registry.release(DEFAULT_NAME)
    registry.crown(DEFAULT_NAME, [versions[0]])


def version_of(alias: str) -> str:
    return str(tracking.connect().get_model_version_by_alias(DEFAULT_NAME, alias).version)


def test_of_two_promotions_at_once_the_better_version_becomes_the_champion(versions: tuple[str, str, str]) -> None:
    bad, *both = versions
    command = [sys.executable, "-c", PROMOTES]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in both]
    champions = []
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for turn in range(ROUNDS):
            tracking.connect().set_registered_model_alias(DEFAULT_NAME, CHAMPION, bad)
            for process, version in zip(processes, both if turn % 2 else both[::-1], strict=True):
                process.stdin.write(f"{version}\n")
                process.stdin.flush()
            assert [process.stdout.readline() for process in processes] == ["done\n"] * 2
            champions.append(version_of(CHAMPION))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert champions == [both[1]] * ROUNDS
    assert registry.champions(DEFAULT_NAME) in ([bad, both[1]], [bad, *both]), (
        "nobody is missing, and nobody is there twice"
    )


def test_a_version_is_compared_again_with_a_champion_that_was_quicker(versions: tuple[str, str, str]) -> None:
    bad, better, best = versions

    @contextmanager
    def best_is_quicker(name: str) -> Iterator[None]:
        if version_of(CHAMPION) == bad:
            assert promote_if_better(best, name).promote
        with registry.state_lock(name):
            yield

    decision = promote_if_better(better, DEFAULT_NAME, lock=best_is_quicker)
    assert not decision.promote
    assert "does not beat the" in decision.reason
    assert f"of the champion, version {best}" in decision.reason
    assert registry.champions(DEFAULT_NAME) == [bad, best]


def test_a_rollback_that_holds_keeps_others_from_the_place_until_it_is_released(versions: tuple[str, str, str]) -> None:
    bad, better, best = versions
    promote_if_better(better, DEFAULT_NAME)
    assert registry.rollback(DEFAULT_NAME, hold=True) == bad
    held = promote_if_better(best, DEFAULT_NAME)
    assert not held.promote
    assert f"Promotions are held since version {better} was rolled back" in held.reason
    assert "python -m flows.release" in held.reason
    recorded = tracking.connect().get_model_version(DEFAULT_NAME, best)
    assert recorded.tags["decision"] == held.reason
    assert recorded.description.endswith(f"**Decision**: not promoted: {held.reason}")
    assert "Rolled back to version 1" in tracking.connect().get_model_version(DEFAULT_NAME, better).description

    assert "are released" in registry.release(DEFAULT_NAME)
    assert promote_if_better(best, DEFAULT_NAME).promote
    assert registry.champions(DEFAULT_NAME) == [bad, best]
    assert "were not held" in registry.release(DEFAULT_NAME)


@pytest.fixture
def four_versions(tmp_path: Path) -> Iterator[None]:
    """Of which each was the champion."""
    with state_in(tmp_path):
        client = tracking.connect()
        client.create_registered_model(DEFAULT_NAME)
        for version in "1234":
            client.create_model_version(DEFAULT_NAME, f"s3://models/{version}")
            registry.crown(DEFAULT_NAME, [*registry.champions(DEFAULT_NAME), version])
        yield


@pytest.mark.usefixtures("four_versions")
def test_rollback_walks_the_history_back_step_by_step() -> None:
    assert version_of(CHALLENGER) == "3", "the newest that is not the champion"
    assert [registry.rollback(DEFAULT_NAME) for _ in range(2)] == ["3", "2"]
    assert version_of(CHALLENGER) == "4"
    tracking.connect().create_model_version(DEFAULT_NAME, "s3://models/5")
    registry.crown(DEFAULT_NAME, [*registry.champions(DEFAULT_NAME), "5"])
    assert [registry.rollback(DEFAULT_NAME) for _ in range(2)] == ["2", "1"], "not to what was rolled back itself"


@pytest.mark.usefixtures("four_versions")
def test_a_champion_made_by_hand_is_part_of_the_history_and_a_deleted_one_is_not() -> None:
    client = tracking.connect()
    client.create_model_version(DEFAULT_NAME, "s3://models/5")
    client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, "5")
    client.delete_model_version(DEFAULT_NAME, "3")
    assert registry.champions(DEFAULT_NAME) == ["1", "2", "4", "5"]
    assert [registry.rollback(DEFAULT_NAME) for _ in range(3)] == ["4", "2", "1"]
