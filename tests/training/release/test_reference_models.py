"""The three models of the published results train from a local checkpoint and answer as ONNX as in PyTorch."""

from pathlib import Path

import pytest
import timm
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from tests.helpers.state import TINY
from training import tracking
from training.config import compose
from training.release.candidate import export_run
from training.train import train

pytestmark = pytest.mark.slow
BACKBONES = {"resnet18": {}, "densenet121": {}, "vit_b16": {"img_size": 32}}


@pytest.mark.parametrize("model", BACKBONES)
def test_it_learns_and_is_exported(model: str, tmp_path: Path) -> None:
    settings = compose([f"model={model}"])
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(settings.model.backbone, **BACKBONES[model]).state_dict(), weights)

    head = "model.head={hidden_sizes: [1024, 512, 256], dropout: 0.3}"
    overrides = [f"model={model}", f"model.weights={weights}", head, "trainer.lr=1e-3", "model.image_size=32"]
    run_id = train(compose([*TINY, *overrides, "mlflow_experiment=reference models"]))
    export_run(run_id)

    client = MlflowClient()
    losses = [metric.value for metric in client.get_metric_history(run_id, "train_loss")]
    assert losses[-1] < losses[0]
    metrics = client.get_run(run_id).data.metrics
    assert metrics["parity_disagreements"] == 0
    assert metrics["parity_max_difference"] < 1e-3
    assert tracking.run_settings(run_id).model.name == model
