"""One model each of the kinds that timm has: it trains, is exported, and its file answers as it does.

docs/models.py tries every family, and writes docs/models.md.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from training.config import compose
from training.loop.trainable import check_trainable
from training.model.classifier import build_model
from training.release.export import export_onnx, onnx_classify, parity

KINDS = {
    "test_convnext": "layer norm after depthwise convolutions",
    "test_resnet": "batch norm",
    "test_nfnet": "no norm, standardised weights",
    "test_vit": "a fixed size, positions",
    "test_mambaout": "gates",
    "mixer_s32_224": "layers as wide as the picture",
    "repvgg_a0": "a strided 1x1 convolution of the picture, whose gradient PyTorch gets wrong with the channels last",
    "levit_128s": "batch norm of vectors",
    "csatv2": "no stages that timm knows",
    "hiera_tiny_224": "fused attention that can't be exported",
    "crossvit_tiny_240": "two sizes at once",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_model_trains_and_its_file_answers_alike(name: str, tmp_path: Path) -> None:
    # Smaller than its own 512 pixels, to take seconds.
    overrides = ["model.image_size=128"] if name == "csatv2" else []
    settings = compose([f"model={name}", "model.weights=none", *overrides])
    check_trainable(settings)
    torch.manual_seed(0)
    model = build_model(settings.model, 10)
    size = settings.model.image_size
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    before = [parameter.detach().clone() for parameter in model.head.parameters()]
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not all(torch.equal(old, new) for old, new in zip(before, model.head.parameters(), strict=True))

    model.eval()
    export_onnx(model, tmp_path / "model.onnx")
    classify = onnx_classify(tmp_path / "model.onnx")
    for shape in ((2, size, size, 3), (3, 70, 50, 3)):
        pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        with torch.inference_mode():
            expected = model(torch.from_numpy(pictures)).softmax(1).numpy()
        assert parity(expected, classify(pictures)).holds


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=csatv2", "trainer.frozen_stages=2"], ["trainer.frozen_stages=2", "csatv2", "frozen_stages=0"]),
        (["model=inception_v3", "model.image_size=32"], ["model.image_size=32", "inception_v3", "made for 299"]),
        (["model=crossvit_tiny_240", "model.image_size=96"], ["model.image_size=96", "made for 240"]),
        (["model=efficientnet_lite0", "trainer.batch_size=1"], ["trainer.batch_size=1", "batch norm"]),
        (["model=gemma4_vit_167m"], ["gemma4_vit_167m", "can't be exported"]),
        (["model=resnet18", "+model.backbone_options.depth=3"], ["backbone_options", "depth", "resnet18"]),
    ],
)
def test_what_can_not_be_trained_is_refused_before_any_work(overrides: list[str], words: list[str]) -> None:
    settings = compose(["data=folder", "data.root=/no/such/place", *overrides])
    assert_raises_in_words(UserError, lambda: check_trainable(settings), *words)


def test_one_picture_at_a_time_is_enough_without_batch_norm() -> None:
    check_trainable(compose(["model=test_vit", "trainer.batch_size=1"]))
    check_trainable(compose(["model=efficientnet_lite0", "trainer.batch_size=1", "trainer.freeze_backbone=true"]))
