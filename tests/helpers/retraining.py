"""Retrainings that a user asks a stack for, and that are broken into."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.helpers.servers import SECONDS_TO_RUN, FlowRun, Stack, prefect_client, running_stack
from tests.helpers.state import TINY_OVERRIDES, TINY_PARAMETERS
from tests.helpers.waiting import wait_until


@contextlib.contextmanager
def hurried_stack(directory: Path) -> Iterator[Stack]:
    """Four minutes of silence are long for a test: two and a half, which outlast an outage, are enough here."""
    with running_stack(directory) as stack:
        hurry_automation(prefect_client(stack.environment["PREFECT_API_URL"]), seconds=150)
        yield stack


def hurry_automation(api: httpx.Client, seconds: int) -> None:
    """Has a run crash that is silent for so long."""
    (automation,) = api.post("automations/filter", json={}).json()
    automation["trigger"]["within"] = seconds
    known = ("name", "description", "enabled", "trigger", "actions")
    api.put(f"automations/{automation['id']}", json={key: automation[key] for key in known}).raise_for_status()


def ask(stack: Stack, seed: int, epochs: int = 6) -> FlowRun:
    """A retraining that a user asks for; a seed has checkpoints of its own."""
    overrides = [*TINY_OVERRIDES, f"trainer.epochs={epochs}", f"seed={seed}"]
    parameters = {**TINY_PARAMETERS, "overrides": overrides}
    return FlowRun.asked_for(stack.environment, stack.worker, "retrain/local", parameters)


def in_mid_training(stack: Stack, seed: int, epochs: int = 6) -> FlowRun:
    """A retraining that has finished an epoch."""

    def finished() -> set[Path]:
        return set(stack.state.glob("runs/*/epoch-*"))

    before = finished()
    run = ask(stack, seed, epochs)
    wait_until(lambda: bool(finished() - before), SECONDS_TO_RUN)
    return run
