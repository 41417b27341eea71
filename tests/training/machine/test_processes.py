"""Several processes share a run: each sees its part of every batch, and all end alike."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from mlflow.entities import Run
from safetensors.torch import load_file

from tests.helpers.commands import assert_user_error, run_module
from tests.helpers.state import ROOT, TINY
from tests.helpers.waiting import free_port, wait_until
from training import tracking

pytestmark = pytest.mark.slow

LITE0 = [*TINY, "trainer.precision=no"]
# Layer norm, for batch norm sees half a batch in each process; nothing random in the model, for each draws its own.
VIT = [*LITE0, "model=timm", "model.backbone=test_vit", "model.weights=none", "model.image_size=160"]
# Trains, and writes what this process has seen and ended with; the second argument ends it in that epoch.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from training.config import compose
from training.data.augmentation import AlbumentationsDataset
from training.machine.processes import in_processes
from training.train import set_up

def work(folder, last, overrides):
    seen, read = [], AlbumentationsDataset.__getitem__
    AlbumentationsDataset.__getitem__ = lambda self, index: (seen.append(int(index)), read(self, index))[1]
    trainer = set_up(compose(overrides)).trainer
    for epoch in trainer.fit():
        if epoch.number == int(last):
            os.kill(os.getpid(), signal.SIGKILL)
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    ended = {"world": world, "seen": seen, "best": trainer.best_epoch, "threads": torch.get_num_threads()}
    Path(folder).mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in trainer.classifier.state_dict().items()}, f"{folder}/{rank}.safetensors")
    Path(folder, f"{rank}.json").write_text(json.dumps(ended))

if __name__ == "__main__":
    folder, last, *overrides = sys.argv[1:]
    in_processes(2, work, folder, last, overrides)
"""


def environment(state: Path) -> dict[str, str]:
    """Two CPUs are given, so that two processes have one each."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    places = {"STATE_DIR": str(state), "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db"}
    return {**inherited, **places, "PYTHONPATH": str(ROOT), "SERVING_THREADS": "2"}


@pytest.mark.parametrize("overrides", [LITE0, VIT], ids=["batch norm, torchrun", "layer norm, trainer.processes"])
def test_two_processes_share_the_pictures_and_end_alike(overrides: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    launcher = torchrun if overrides is LITE0 else []

    def ends(state: str, folder: str, last: int = 0) -> list[tuple[dict[str, torch.Tensor], dict[str, int]]]:
        command = [sys.executable, *launcher, program, tmp_path / folder, str(last), *overrides]
        place = environment(tmp_path / state)
        result = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True)
        assert (result.returncode == 0) == (not last), result.stderr
        return [
            (load_file(path), json.loads(path.with_suffix(".json").read_text()))
            for path in sorted((tmp_path / folder).glob("*.safetensors"))
        ]

    (weights, first), (weights_of_second, second) = ends("state", "unbroken")
    assert first["world"] == second["world"] == 2
    assert first["threads"] == second["threads"] == 1
    assert len(first["seen"]) == len(second["seen"]) == 320
    for start in range(0, 320, 32):  # each batch of 64, of which each has half
        assert set(first["seen"][start : start + 32]).isdisjoint(second["seen"][start : start + 32])
    assert first["best"] == second["best"]
    assert weights.keys() == weights_of_second.keys()
    for name, tensor in weights.items():
        assert torch.equal(weights_of_second[name], tensor), name

    if not launcher:
        return
    ends("other", "broken", last=2)
    for resumed, _ in ends("other", "resumed"):
        for name, tensor in weights.items():
            assert torch.equal(resumed[name], tensor), name


def train(
    state: Path, processes: int, stopped: int | None = None, victim: str = "", epochs: int = 5
) -> tuple[int, str]:
    """Trains to the end, or until a checkpoint is there and the parent, or a `process` of it, gets the signal.

    Returns the exit code and what was printed; all of its processes are gone then.
    """
    settings = [*VIT, "trainer.optimizer=sgd", f"trainer.epochs={epochs}", f"trainer.processes={processes}"]
    command = [sys.executable, "-m", "training.train", *settings]
    before = set(state.glob("runs/*/epoch-*"))
    with (
        (state.parent / "log").open("w+") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment(state), stdout=log, stderr=log) as parent,
    ):
        family: list[psutil.Process] = []
        if stopped:
            wait_until(lambda: bool(set(state.glob("runs/*/epoch-*")) - before) or parent.poll() is not None, 600)
            family = psutil.Process(parent.pid).children(recursive=True)
            workers = [each for each in family if "spawn_main" in " ".join(each.cmdline())]
            assert len(workers) == (processes if processes > 1 else 0)
            os.kill(workers[-1].pid if victim else parent.pid, stopped)
        parent.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        return parent.returncode, Path(log.name).read_text()


@contextlib.contextmanager
def tracked_in(state: Path) -> Iterator[Run]:
    """The only run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{state}/mlflow.db")
        (run,) = tracking.connect().search_runs([tracking.experiment_id("cifar10")])
        yield run


def test_two_processes_learn_what_one_does_also_where_they_take_turns_with_it(tmp_path: Path) -> None:
    def weights(state: Path, processes: int) -> dict[str, torch.Tensor]:
        code, log = train(state, processes)
        assert code == 0, log
        assert log.count("test accuracy") == 1
        with tracked_in(state) as run:
            assert run.info.status == "FINISHED"
            assert run.data.tags["processes"] == str(processes)
            return load_file(tracking.artifact(run.info.run_id, tracking.WEIGHTS_FILE))

    one = weights(tmp_path / "one", 1)
    state = tmp_path / "turns"
    train(state, 1, signal.SIGKILL)
    code, log = train(state, 2, signal.SIGKILL, "process")
    assert "began with 1 and goes on with 2" in log
    assert code == 2, log
    assert "Traceback" not in log
    message = log[log.index("error: ") :].splitlines()
    assert message[0].startswith("error: process 2 of 2 was killed by SIGKILL")
    assert len(message) == 2
    code, log = train(state, 2, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, log
    assert "Traceback" not in log
    assert "it goes on after epoch" in log
    with tracked_in(state) as run:
        assert run.info.status == "KILLED"
    train(state, 2, signal.SIGKILL)
    for name, tensor in weights(state, 1).items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.processes=gpu", ["trainer.processes=gpu", "no GPU"]),
        ("trainer.batch_size=63", ["trainer.batch_size=63", "2 processes"]),
    ],
)
def test_a_mistake_has_two_lines_whichever_process_finds_it(setting: str, words: list[str]) -> None:
    assert_user_error(
        run_module("training.train", *TINY, "trainer.processes=2", setting, CUDA_VISIBLE_DEVICES=""), *words
    )


def test_a_process_that_would_believe_it_is_alone_is_refused() -> None:
    assert_user_error(run_module("training.train", *TINY, WORLD_SIZE="2"), "WORLD_SIZE=2", "torchrun")
