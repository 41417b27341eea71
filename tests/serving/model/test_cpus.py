"""What is sized by the CPUs follows those that are given."""

import os
import subprocess
import sys

import pytest

from serving.model.cpus import batches, cpus
from serving.model.errors import UserError
from serving.model.runtime import OnnxRuntime
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import ROOT, Trained


def test_affinity_leaves_fewer() -> None:
    """One of several; beside it what is there without, so that a machine of one CPU can't hide a mistake."""
    given = sorted(os.sched_getaffinity(0))
    if len(given) < 2:
        pytest.skip("there is one CPU here")
    program = "from serving.model.cpus import *; import torch; from training.loop.processes import join; join(); "
    program += "print(cpus(), batches(), torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def told(*prefix: str) -> list[int]:
        command = [*prefix, sys.executable, "-c", program]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return [int(word) for word in result.stdout.split()]

    assert told("taskset", "--cpu-list", str(given[0])) == [1, 1, 1]
    assert told()[:2] == [len(given), len(given) + 1]
    # PyTorch follows affinity by itself, but not the setting.
    environment["SERVING_THREADS"] = "1"
    assert told() == [1, 1, 1]


def test_a_setting_overrides_it(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_THREADS", "3")
    assert (cpus(), batches()) == (3, 4)
    monkeypatch.setenv("SERVING_THREADS", "1")
    assert (cpus(), batches()) == (1, 1)
    runtime = OnnxRuntime(trained.onnx, ("CPUExecutionProvider",))
    assert runtime._on_all_cores is runtime._on_one_core
    assert runtime._on_all_cores.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVING_THREADS", value)
    assert_raises_in_words(UserError, cpus, f"SERVING_THREADS={value}", "1 or more")
