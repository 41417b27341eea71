"""ImageClassifier: Resize and Normalize, a timm backbone, and a head."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from training.model.backbones import create_backbone, takes_drop_path
from training.model.preprocessing import Preprocessing
from training.settings import ModelSettings


class ImageClassifier(nn.Module):
    """Classifies decoded pictures, with Resize and Normalize as its first layers.

    Args:
        backbone: maps float (N, 3, S, S) to features (N, `backbone.head_hidden_size`).
        hidden_sizes: widths of the head's hidden layers; empty for timm's single linear layer.
        dropout: probability, after each hidden layer.
        flip_average: answer by the mean over a picture and its mirror image; training looks at the picture alone.
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
        flip_average: bool = False,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.flip_average = flip_average
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
        self.register_buffer("temperature", torch.ones(()))  # set by calibration.py, after training

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3), RGB -> logits (N, classes)."""
        logits: Tensor = self.head(self.features(images, self.flip_average and not self.training))
        return logits / self.temperature

    def features(self, images: Tensor, flip_average: bool) -> Tensor:
        """uint8 (N, H, W, 3), RGB -> (N, D), what the head reads: of the pictures, or of them and their mirror images.

        Their mean is taken before the head, so that a head on features that were computed once is validated as it is
        served. With a linear head that is the mean of the logits.
        """
        pixels = self.preprocessing(images)
        if flip_average:  # in one pass, so that an exported file has each layer once
            pixels = torch.cat([pixels, pixels.flip(3)])
        features: Tensor = self.backbone(pixels)
        return features.unflatten(0, (2, -1)).mean(0) if flip_average else features

    def no_weight_decay(self) -> set[str]:
        """The parameters that timm spares from weight decay, such as positions."""
        spared: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in spared}

    def group_matcher(self, coarse: bool) -> Callable[[str], float]:
        """The layer that a parameter belongs to, as timm's `layer_decay` asks for it: the backbone's, then the head."""
        layers = group_parameters(self.backbone, self.backbone.group_matcher(coarse=coarse), reverse=True)
        return lambda name: layers.get(name.removeprefix("backbone."), math.inf)

    def stages(self) -> list[list[str]]:
        """The names of the backbone's parameters, stage by stage from the stem on."""
        return list(group_parameters(self.backbone, self.backbone.group_matcher(coarse=True)).values())


def build_model(settings: ModelSettings, classes: int, drop_path: float | None = None) -> ImageClassifier:
    """Builds a model with the weights that its settings name; raises UserError as `create_backbone` does."""
    options = settings.backbone_options
    if drop_path or (drop_path == 0 and takes_drop_path(settings.backbone)):
        options = options | {"drop_path_rate": drop_path}
    backbone = create_backbone(settings.backbone, settings.weights, options)
    preprocessing = Preprocessing(
        settings.image_size, settings.mean, settings.std, settings.fit, settings.interpolation, settings.crop_share
    )
    head = settings.head
    model = ImageClassifier(
        preprocessing, backbone, classes, head.hidden_sizes, head.dropout, flip_average=settings.flip_average
    )
    lay_out(model)
    return model


def lay_out(model: nn.Module) -> None:
    """Lays convolutions out with the channels last, which is faster on CPUs and GPUs.

    Not so strided 1x1 convolutions of fewer than 16 channels, as RepVGG has them: in the gradient of these PyTorch 2.14
    writes past the end of its memory on a CPU, and dies.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module.kernel_size == (1, 1) and module.stride != (1, 1) and module.in_channels < 16:
                module.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
            else:
                module.to(memory_format=torch.channels_last)
