"""The flows that put the previous champion back and release promotions, on a real registry and a real Prefect API."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.release import release
from flows.rollback import LIMIT, lock_everywhere, rollback
from serving.model.errors import UserError
from serving.model.registry import CHAMPION, DEFAULT_NAME
from tests.helpers.commands import assert_in_words, run_module
from tests.helpers.state import ROOT, state_in
from tests.helpers.waiting import free_port, wait_until
from training import tracking
from training.release import registry

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_state(prefect_api: None, tmp_path: Path) -> Iterator[None]:
    api = PREFECT_API_URL.value()
    with state_in(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(api))  # for processes of their own
        yield


def champions(count: int) -> None:
    """So many versions, each of which was the champion."""
    client = tracking.connect()
    client.create_registered_model(DEFAULT_NAME)
    for version in map(str, range(1, count + 1)):
        client.create_model_version(DEFAULT_NAME, f"s3://models/{version}")
        registry.crown(DEFAULT_NAME, [*registry.champions(DEFAULT_NAME), version])


def test_the_previous_champion_is_put_back_once() -> None:
    """Also where version 0.1.0 promoted it."""
    client, name = tracking.connect(), DEFAULT_NAME
    client.create_registered_model(name)
    first, second = (str(client.create_model_version(name, "s3://models/a").version) for _ in range(2))
    client.set_model_version_tag(name, second, registry.PREVIOUS, first)
    client.set_registered_model_alias(name, CHAMPION, second)

    assert rollback() == first
    champion = registry.champion(DEFAULT_NAME)
    assert champion is not None
    assert str(champion.version) == first
    with get_client(sync_client=True) as api:
        (artifact,) = api.read_artifacts()
    assert f"Version {first} is the champion again" in str(artifact.data)
    with pytest.raises(UserError, match="there is none to go back to"):
        rollback()


def test_a_rollback_can_hold_promotions_until_they_are_released() -> None:
    champions(4)
    assert rollback(hold=True) == "3"
    assert "since version 4 was rolled back" in str(registry.held(DEFAULT_NAME))
    assert "are released" in release()
    assert registry.held(DEFAULT_NAME) is None

    commands = run_module("flows.rollback", "hold=true"), run_module("flows.release"), run_module("flows.release")
    assert [command.returncode for command in commands] == [0, 0, 0], commands
    assert "held since version 3 was rolled back" in commands[1].stdout
    assert "were not held" in commands[2].stdout
    assert registry.champions(DEFAULT_NAME) == ["1", "2"]


def test_without_the_server_s_limit_a_rollback_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    champions(2)
    assert rollback() == "1"
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert_in_words(warning, "is locked on this machine alone", f"prefect gcl create {LIMIT} --limit 1")


def test_a_rollback_waits_for_another_machine_that_moves_the_champion(tmp_path: Path) -> None:
    champions(3)
    with get_client(sync_client=True) as api:
        api.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))
    elsewhere = tmp_path / "elsewhere"
    program = (
        "from flows.rollback import registry, rollback\n"
        f"registry.champion({DEFAULT_NAME!r})  # connected: what takes time from here on is waiting\n"
        "print('version', rollback())"
    )
    seen = []
    with concurrency(LIMIT, strict=True):
        other = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "STATE_DIR": str(elsewhere)},
            stdout=subprocess.PIPE,
            text=True,
        )

        def holds_its_own_lock() -> bool:
            try:
                with FileLock(*elsewhere.glob("locks/*"), timeout=0):
                    return False
            except (Timeout, TypeError):
                return list(elsewhere.glob("locks/*")) != []

        def waits() -> bool:
            seen.append(holds_its_own_lock())
            return seen[-10:] == [True] * 10

        wait_until(waits, 90)
        tracking.connect().create_model_version(DEFAULT_NAME, "s3://models/4")
        registry.crown(DEFAULT_NAME, ["1", "2", "3", "4"])
    output, _ = other.communicate(timeout=120)
    assert "version 3" in output, "it went back from the champion that was made while it waited"


def test_a_server_that_is_away_when_the_lock_is_given_back_undoes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with get_client(sync_client=True) as api:
        api.upsert_global_concurrency_limit_by_name(LIMIT, 1)

    @flow
    def move() -> str:
        with ExitStack() as outage:
            with lock_everywhere(DEFAULT_NAME):
                outage.enter_context(temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}))
            return "moved"

    assert move() == "moved"
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert_in_words(warning, f"the limit {LIMIT} is given back within a minute")
