"""What can't be trained here, refused in words before any work is done."""

import torch
from timm.models import model_entrypoint
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn

from serving.model.errors import UserError
from training.loop.processes import join
from training.model.backbones import own_settings
from training.model.classifier import ImageClassifier, build_model
from training.settings import ModelSettings, TrainSettings

# Families of timm's whose models can't be exported to ONNX: docs/models.md.
NOT_EXPORTED = ("gemma4_vit",)
NORMS = nn.modules.batchnorm._BatchNorm


def check_trainable(settings: TrainSettings) -> None:
    """Raises UserError where the model or the optimizer can't be trained with these settings on this machine."""
    _check_optimizer(settings.trainer.optimizer)
    if model_entrypoint(settings.model.backbone).__module__.rpartition(".")[2] in NOT_EXPORTED:
        raise UserError(f"{settings.model.backbone} can't be exported to ONNX, so it could not be served; take another")
    if settings.small_data:  # the rest may change with the number of pictures: asked again when that is known
        return
    model = _on_paper(settings.model)
    trainer = settings.trainer
    if trainer.frozen_stages and not trainer.freeze_backbone:
        try:
            model.stages()
        except Exception as error:  # timm's models each in their own way
            raise UserError(
                f"trainer.frozen_stages={trainer.frozen_stages}: timm does not know the stages of "
                f"{settings.model.backbone}; give trainer.frozen_stages=0, or trainer.freeze_backbone=true"
            ) from error
    trained: nn.Module = model.head if trainer.freeze_backbone else model
    if trainer.batch_size // join().num_processes < 2 and any(
        isinstance(module, NORMS) for module in trained.modules()
    ):
        raise UserError(
            f"trainer.batch_size={trainer.batch_size}: {settings.model.backbone} has batch norm, which needs at least "
            "2 pictures in each process"
        )


def _check_optimizer(name: str) -> None:
    reason = "it needs second derivatives" if get_optimizer_info(name).second_order else ""
    if not reason:
        try:
            create_optimizer_v2(nn.Linear(1, 1), name, lr=1e-3)
        except Exception as error:  # a package or a GPU that is not there
            reason = str(error) or type(error).__name__
    if reason:
        raise UserError(f"trainer.optimizer={name} can't be used here: {reason}")


def _on_paper(settings: ModelSettings) -> ImageClassifier:
    """The model without memory for its numbers, once it has answered a batch."""
    random = settings.model_copy(update={"weights": "none"})
    with torch.device("meta"):
        model = build_model(random, classes=2)
        try:
            model.eval()(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
        except Exception as error:  # timm's models each in their own way
            own = own_settings(settings.backbone)
            reason = " ".join(str(error).split())
            raise UserError(
                f"model.image_size={settings.image_size}: {settings.backbone} can't look at pictures of that size "
                f"({reason:.100}).\nIt was made for {own.image_size}."
            ) from error
    return model
