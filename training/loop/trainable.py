"""What can't be trained here, refused in words before any work is done."""

import sys

import torch
from timm.models import model_entrypoint
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn

from serving.model.errors import UserError
from training.loop.small_data import suited
from training.machine.processes import processes
from training.model.backbones import own_settings, takes_drop_path
from training.model.classifier import ImageClassifier, build_model
from training.settings import ModelSettings, TrainSettings

# Families of timm's whose models can't be exported to ONNX: docs/models.md.
NOT_EXPORTED = ("gemma4_vit",)
NORMS = nn.modules.batchnorm._BatchNorm


def check_trainable(settings: TrainSettings) -> None:
    """Raises UserError where the model or the optimizer can't be trained with these settings on this machine.

    Where they may change with the number of pictures: if they can't be with any number of them.
    """
    _check_optimizer(settings.trainer.optimizer)
    if model_entrypoint(settings.model.backbone).__module__.rpartition(".")[2] in NOT_EXPORTED:
        raise UserError(f"{settings.model.backbone} can't be exported to ONNX, so it could not be served; take another")
    refused = []
    for pictures in (sys.maxsize, *(entry.below - 1 for entry in settings.small_data)):
        try:
            return _check_suited(suited(settings, pictures))
        except UserError as error:
            refused.append(error)
    raise refused[0]


def _check_suited(settings: TrainSettings) -> None:
    trainer, together = settings.trainer, processes(settings.trainer.processes)
    if trainer.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("trainer.precision=fp16 needs a GPU; give auto, bf16 or no")
    model = _on_paper(settings.model)
    if not trainer.freeze_backbone:
        _check_backbone(settings, model, together)
    trained: nn.Module = model.head if trainer.freeze_backbone else model
    batch = trainer.batch_size // together
    if batch < 2 and any(isinstance(module, NORMS) for module in trained.modules()):
        raise UserError(
            f"trainer.batch_size={trainer.batch_size}: {settings.model.backbone} has batch norm, which needs at least "
            "2 pictures in each process"
        )


def _check_backbone(settings: TrainSettings, model: ImageClassifier, together: int) -> None:
    """Of a backbone that is trained itself."""
    trainer, name = settings.trainer, settings.model.backbone
    if trainer.image_size:
        _on_paper(settings.model.model_copy(update={"image_size": trainer.image_size}), "trainer")
    if trainer.drop_path and not takes_drop_path(name):
        raise UserError(f"trainer.drop_path={trainer.drop_path}: {name} has no blocks that can be left out; give 0")
    if trainer.mixes and trainer.batch_size // together % 2:
        raise UserError(
            f"trainer.batch_size={trainer.batch_size}: trainer.mixup and trainer.cutmix take pictures in pairs, in "
            "each process; give an even number"
        )
    if trainer.cutmix and settings.model.crop_share < 1:
        raise UserError(
            f"trainer.cutmix={trainer.cutmix}: a patch would count where model.crop_share={settings.model.crop_share} "
            "hides it; give model.crop_share=1 or trainer.cutmix=0"
        )
    for key, without in (("frozen_stages", 0), ("layer_decay", 1.0)):
        if (value := getattr(trainer, key)) != without:
            try:
                model.group_matcher(coarse=key == "frozen_stages")
            except Exception as error:  # timm's models each in their own way
                raise UserError(
                    f"trainer.{key}={value}: timm does not know the stages of {name}; give trainer.{key}={without}, or "
                    "trainer.freeze_backbone=true"
                ) from error


def _check_optimizer(name: str) -> None:
    reason = "it needs second derivatives" if get_optimizer_info(name).second_order else ""
    if not reason:
        try:
            create_optimizer_v2(nn.Linear(1, 1), name, lr=1e-3)
        except Exception as error:  # a package or a GPU that is not there
            reason = str(error) or type(error).__name__
    if reason:
        raise UserError(f"trainer.optimizer={name} can't be used here: {reason}")


def _on_paper(settings: ModelSettings, group: str = "model") -> ImageClassifier:
    """The model without memory for its numbers, once it has answered a batch; `group` names the size that it had."""
    random = settings.model_copy(update={"weights": "none"})
    with torch.device("meta"):
        model = build_model(random, classes=2)
        try:
            model.eval()(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
        except Exception as error:  # timm's models each in their own way
            own = own_settings(settings.backbone)
            reason = " ".join(str(error).split())
            raise UserError(
                f"{group}.image_size={settings.image_size}: {settings.backbone} can't look at pictures of that size "
                f"({reason:.100}).\nIt was made for {own.image_size}."
            ) from error
    return model
