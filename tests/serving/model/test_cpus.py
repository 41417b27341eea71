"""What is sized by the CPUs follows those that are given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.model.cpus import batches, cpus
from serving.model.errors import UserError
from serving.model.runtime import OnnxRuntime
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import ROOT, Trained


def told(*prefix: str, **environment: str) -> list[int]:
    """CPUs, batches and PyTorch's threads in a process of its own."""
    program = "from serving.model.cpus import *; import torch; from training.machine.processes import join; join(); "
    program += "print(cpus(), batches(), torch.get_num_threads())"
    result = subprocess.run(
        [*prefix, sys.executable, "-c", program],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in result.stdout.split()]


def test_affinity_leaves_fewer() -> None:
    """One of several; beside it what is there without, so that a machine of one CPU can't hide a mistake."""
    given = sorted(os.sched_getaffinity(0))
    if len(given) < 2:
        pytest.skip("there is one CPU here")
    assert told("taskset", "--cpu-list", str(given[0])) == [1, 1, 1]
    assert told() == [len(given), len(given) + 1, len(given)]
    # PyTorch follows affinity by itself, but not the setting.
    assert told(SERVING_THREADS="1") == [1, 1, 1]
    assert told(SERVING_THREADS="1", OMP_NUM_THREADS="2")[2] == 2


@pytest.mark.skipif(os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2, reason="needs root and two CPUs")
@pytest.mark.parametrize(
    "files",
    [{"cpu.max": "50000 100000"}, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}],
    ids=["version 2", "version 1"],
)
def test_a_quota_leaves_fewer(files: dict[str, str], tmp_path: Path) -> None:
    """The kernel's files as a container sees them, in a view of the file system of the process's own."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    in_the_view = f'mount --bind {tmp_path} /sys/fs/cgroup && exec "$0" "$@"'
    assert told("unshare", "--mount", "sh", "-c", in_the_view) == [1, 1, 1]


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
