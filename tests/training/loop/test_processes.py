"""Several processes share a run: each sees its part of every batch, and all end alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.commands import assert_user_error, run_module
from tests.helpers.state import ROOT, TINY
from tests.helpers.waiting import free_port
from training import tracking

pytestmark = pytest.mark.slow

LITE0 = [*TINY, "trainer.precision=no"]
# Layer norm, for batch norm sees half a batch in each process; nothing random in the model, for each draws its own.
VIT = [*LITE0, "model=timm", "model.backbone=test_vit", "model.weights=none", "model.image_size=160"]
# Trains, and writes what this process has seen and ended with; the second argument ends it in that epoch.
PROGRAM = """
import json, os, sys
from pathlib import Path
from safetensors.torch import save_file
from training.config import compose
from training.data.augmentation import AlbumentationsDataset
from training.train import set_up

folder, last, *overrides = sys.argv[1:]
seen, read = [], AlbumentationsDataset.__getitem__
AlbumentationsDataset.__getitem__ = lambda self, index: (seen.append(int(index)), read(self, index))[1]
trainer = set_up(compose(overrides)).trainer
for epoch in trainer.fit():
    if epoch.number == int(last):
        os._exit(0)
rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
Path(folder).mkdir(exist_ok=True)
save_file({k: v.contiguous() for k, v in trainer.classifier.state_dict().items()}, f"{folder}/{rank}.safetensors")
Path(folder, f"{rank}.json").write_text(json.dumps({"world": world, "seen": seen, "best": trainer.best_epoch}))
"""


def launch(processes: int, state: Path, *command: str) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    environment = {**os.environ, "STATE_DIR": str(state), "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db"}
    result = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("overrides", [LITE0, VIT], ids=["batch norm", "layer norm"])
def test_two_processes_share_the_pictures_and_end_alike_also_when_resumed(overrides: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def ends(state: str, folder: str, last: int = 0) -> list[tuple[dict[str, torch.Tensor], dict[str, int]]]:
        launch(2, tmp_path / state, str(program), str(tmp_path / folder), str(last), *overrides)
        return [
            (load_file(path), json.loads(path.with_suffix(".json").read_text()))
            for path in sorted((tmp_path / folder).glob("*.safetensors"))
        ]

    (weights, first), (weights_of_second, second) = ends("state", "unbroken")
    assert first["world"] == second["world"] == 2
    assert len(first["seen"]) == len(second["seen"]) == 320
    for start in range(0, 320, 32):  # each batch of 64, of which each has half
        assert set(first["seen"][start : start + 32]).isdisjoint(second["seen"][start : start + 32])
    assert first["best"] == second["best"]
    assert weights.keys() == weights_of_second.keys()
    for name, tensor in weights.items():
        assert torch.equal(weights_of_second[name], tensor), name

    ends("other", "broken", last=2)
    for resumed, _ in ends("other", "resumed"):
        for name, tensor in weights.items():
            assert torch.equal(resumed[name], tensor), name


def test_two_processes_learn_what_one_does_and_track_one_run(tmp_path: Path) -> None:
    def weights(processes: int) -> dict[str, torch.Tensor]:
        state = tmp_path / str(processes)
        launch(processes, state, "-m", "training.train", *VIT, "trainer.optimizer=sgd")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{state}/mlflow.db")
            (run,) = tracking.connect().search_runs([tracking.experiment_id("cifar10")])
            assert run.info.status == "FINISHED"
            assert run.data.tags["processes"] == str(processes)
            return load_file(tracking.artifact(run.info.run_id, tracking.WEIGHTS_FILE))

    one, two = weights(1), weights(2)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_process_that_would_believe_it_is_alone_is_refused() -> None:
    assert_user_error(run_module("training.train", *TINY, WORLD_SIZE="2"), "WORLD_SIZE=2", "torchrun")
