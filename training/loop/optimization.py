"""What a step of training changes and how: losses, parameters, learning rates, averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from training.model.classifier import ImageClassifier
from training.settings import TrainerSettings


def build_optimizer(settings: TrainerSettings, network: nn.Module) -> Optimizer:
    """timm's optimizer of that name, with learning rates that fall layer by layer from the head on (`layer_decay`)."""
    kind = get_optimizer_class(settings.optimizer, bind_defaults=False)
    fused = {"fused": True} if torch.cuda.is_available() and "fused" in signature(kind).parameters else {}
    return create_optimizer_v2(
        network,
        settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay if settings.layer_decay < 1 and not settings.freeze_backbone else None,
        **fused,  # type: ignore[arg-type]
    )


def build_schedule(settings: TrainerSettings, optimizer: Optimizer, steps: int, steps_of_epoch: int) -> Scheduler:
    """The learning rate of each of `steps`; a warm-up begins at 1e-5, or at a tenth of a small rate."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        settings.scheduler,
        num_epochs=steps,
        warmup_epochs=settings.warmup_epochs * steps_of_epoch,  # type: ignore[arg-type]  # timm takes fractions as well
        warmup_lr=min(1e-5, settings.lr / 10),
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule


class Loss:
    """Cross entropy, of batches that are mixed first where that is asked for.

    mixup: Zhang et al. 2018; cutmix: Yun et al. 2019. Where both are asked for, each batch gets one of them by chance,
    from NumPy's global random state.
    """

    def __init__(self, settings: TrainerSettings, labels: np.ndarray, classes: int, device: torch.device) -> None:
        self.smoothing = settings.label_smoothing
        self.weights = class_weights(labels, classes).to(device) if settings.class_balance == "loss" else None
        mixup = Mixup(settings.mixup, settings.cutmix, label_smoothing=0, num_classes=classes)
        self.mix = mixup if settings.mixes else None

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of uint8 (N, H, W, 3), or of features (N, D), with labels int64 (N,): float32 ()."""
        if self.mix:
            # Mixing commutes with Resize and Normalize, so what is small is mixed.
            pixels, labels = self.mix(images.permute(0, 3, 1, 2).float(), labels)
            images = pixels.permute(0, 2, 3, 1)
        return F.cross_entropy(model(images), labels, self.weights, label_smoothing=self.smoothing)


class AveragedWeights(ModelEmaV3):
    """The exponential moving average of a network's weights, whose decay begins at 0 (timm's `use_warmup`)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, decay, use_warmup=True)

    @contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """Lets the network answer with the average."""
        self.exchange(network)
        try:
            yield
        finally:
            self.exchange(network)

    @torch.no_grad()
    def exchange(self, network: nn.Module) -> None:
        """Gives the network the average, and takes its own weights in exchange."""
        for average, own in zip(self.module.state_dict().values(), network.state_dict().values(), strict=True):
            kept = average.clone()
            average.copy_(own)
            own.copy_(kept)


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """What a picture of each class counts, float32 (classes,): inversely to how many there are, 1 on average."""
    counts = torch.as_tensor(np.bincount(labels, minlength=classes))
    weights = len(labels) / ((counts > 0).sum() * counts)
    return weights.masked_fill(counts == 0, 0)


def freeze(model: ImageClassifier, stages: int) -> None:
    """Takes the parameters of the backbone's first stages out of training."""
    for names in model.stages()[:stages]:
        for name in names:
            model.backbone.get_parameter(name).requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but for frozen layers, whose batch statistics and dropout stay as they are."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
