"""python -m training.compare: the matrix, its table, and no run twice."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import timm
from safetensors.torch import save_file

from tests.conftest import assert_user_error
from training import tracking

Run = Callable[..., CompletedProcess[str]]


@pytest.mark.slow
def test_the_matrix_is_trained_once_and_tabulated(run_module: Run, tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), weights)
    limits = ["data=digits", "data.train_limit=128", "data.validation_limit=50", "data.test_limit=50"]
    small = ["model.image_size=32", f"model.weights={weights}", "trainer.epochs=1", "mlflow_experiment=matrix"]
    arguments = [
        "models=[resnet18]",
        "experiments=[frozen,no_coarse_dropout]",
        f"overrides={json.dumps(limits + small)}",
        f"report={tmp_path / 'table'}",
    ]

    def tracked() -> int:
        return len(tracking.connect().search_runs([tracking.experiment_id("matrix")]))

    first = run_module("training.compare", *arguments[:1], "experiments=[frozen]", *arguments[2:])
    assert first.returncode == 0, first.stderr
    assert tracked() == 1
    for _ in range(2):
        result = run_module("training.compare", *arguments)
        assert result.returncode == 0, result.stderr
        assert tracked() == 2, "what was trained is not trained again"
    table = (tmp_path / "table.md").read_text()
    assert table in result.stdout
    header, _, frozen, ablation = table.splitlines()
    assert "accuracy | precision | recall | f1 | minutes | images per second | reference" in header
    assert "| resnet18 | frozen |" in frozen
    assert "51.42%" in frozen
    assert "| resnet18 | no_coarse_dropout |" in ablation
    assert (tmp_path / "table.png").stat().st_size > 5_000


def test_a_mistake_in_the_last_combination_is_refused_before_the_first(run_module: Run, tmp_path: Path) -> None:
    result = run_module("training.compare", "models=[resnet18,resnet19]", f"report={tmp_path / 'table'}")
    assert_user_error(result, "resnet19", "densenet121")
