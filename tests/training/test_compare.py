"""python -m training.compare: the matrix, its table, and no run twice."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
from safetensors.torch import save_file

from serving.model.errors import UserError, WeightsError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import TINY_OVERRIDES
from training import compare, tracking
from training.settings import CompareSettings


@pytest.mark.slow
def test_the_matrix_is_trained_once_and_tabulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), weights)
    # By the name of the pictures that the published figures are of.
    limits = [
        "data=digits",
        "data.name=cifar10",
        "data.train_limit=128",
        "data.validation_limit=50",
        "data.test_limit=50",
    ]
    small = ["model.image_size=32", f"model.weights={weights}", "trainer.epochs=1", "mlflow_experiment=matrix"]

    def run(*experiments: str) -> int:
        """The number of tracked runs after the matrix of these experiments."""
        overrides, report = limits + small, tmp_path / "table"
        settings = {"models": ["resnet18"], "experiments": [*experiments], "overrides": overrides, "report": report}
        published = {"resnet18": {"frozen": 0.5142}}
        compare.main(CompareSettings.model_validate({**settings, "published": published}))
        return len(tracking.connect().search_runs([tracking.experiment_id("matrix")]))

    assert run("frozen") == 1
    for _ in range(2):
        assert run("frozen", "no_coarse_dropout") == 2, "what was trained is not trained again"
    table = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.endswith(f"{table}\n")
    header, _, frozen, ablation = table.splitlines()
    assert "accuracy | precision | recall | f1 | minutes | images per second | reference" in header
    assert "| resnet18 | frozen |" in frozen
    assert "51.42%" in frozen
    assert "| resnet18 | no_coarse_dropout |" in ablation
    assert (tmp_path / "table.svg").read_text().count("<text") > 10


@pytest.mark.slow
def test_what_fails_is_a_row_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is the real one, told that it is offline and with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(*models: str) -> list[str]:
        """The rows of the table."""
        values = {"models": [*models], "experiments": ["quick"], "overrides": ["data=digits", *TINY_OVERRIDES]}
        compare.main(CompareSettings.model_validate({**values, "report": tmp_path / "table", "published": {}}))
        return (tmp_path / "table.md").read_text().splitlines()[2:]

    trained, failed = run("resnet18", "efficientnet_lite0")
    assert trained.startswith("| efficientnet_lite0 | quick |")
    assert "%" in trained
    assert failed.startswith("| resnet18 | quick | failed: the weights of resnet18 can't be fetched")
    with pytest.raises(WeightsError, match="resnet18"):
        run("resnet18")


def test_a_mistake_in_the_last_combination_is_refused_before_the_first(tmp_path: Path) -> None:
    models = ["efficientnet_lite0", "resnet19"]
    settings = CompareSettings(
        models=models, experiments=["frozen"], overrides=[], report=tmp_path / "table", published={}
    )
    assert_raises_in_words(UserError, lambda: compare.main(settings), "resnet19", "densenet121")
    assert not list(tmp_path.iterdir())
