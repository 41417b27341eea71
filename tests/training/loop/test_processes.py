"""Several processes learn what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.state import ROOT, TINY
from training import tracking

# Layer norm, for batch norm sees half a batch in each process; and nothing random, for each draws its own.
STEPS = [f"transforms.steps.{name}.p=0" for name in ("horizontal_flip", "rotate", "coarse_dropout")]
MODEL = ["model=timm", "model.backbone=test_vit", "model.weights=none", "model.image_size=160"]
COMMAND = [*TINY, *MODEL, *STEPS, "~transforms.steps.pad", "trainer.precision=no", "trainer.optimizer=sgd"]


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    def weights(state: Path, launcher: list[str]) -> dict[str, torch.Tensor]:
        uri = f"sqlite:///{state}/mlflow.db"
        environment = {**os.environ, "STATE_DIR": str(state), "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, *launcher, "-m", "training.train", *COMMAND],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            (run,) = tracking.connect().search_runs([tracking.experiment_id("cifar10")])
            assert run.info.status == "FINISHED"
            return load_file(tracking.artifact(run.info.run_id, tracking.WEIGHTS_FILE))

    one = weights(tmp_path / "one", [])
    two = weights(tmp_path / "two", ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
