"""The types and ranges of all settings: what is validated here is what the code receives.

What a setting means stands beside its default in conf/, and in docs/settings.md.
"""

import difflib
import re
import warnings
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import albumentations as A
import numpy as np
import timm
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from timm.optim import list_optimizers

from serving.model.pictures.decoding import Decoding
from training.model.backbones import PACKAGES

Text = Annotated[str, Field(min_length=1)]
# A text in the configuration; an empty one is no path.
PathText = Annotated[Path, Strict(False), BeforeValidator(lambda text: text or None)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-1, le=1)]  # of a share
LessThanOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def build(node: dict[str, Any], size: int, padded_size: int) -> Any:
    """Instantiates a Hydra node whose values may contain `${size}` and `${padded_size}`."""
    return instantiate(OmegaConf.create({"size": size, "padded_size": padded_size, "node": node}).node)


def _can_be_built(node: dict[str, Any]) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            # Albumentations only warns of an argument that it does not know.
            warnings.filterwarnings("error", ".*are not valid for transform.*")
            step = build(node, size=8, padded_size=9)
            if isinstance(step, A.BaseCompose):  # which checks none of its arguments itself
                step(image=np.zeros((8, 8, 3), np.uint8))
    except Exception as error:  # Hydra's, OmegaConf's and Albumentations' own
        # Albumentations names an argument in the second line, and what is wrong with it in the third.
        if found := re.search(r"InitSchema\\n(\w+)[^\\]*\\n\s*Input (.+?) \[type=", str(error)):
            raise ValueError(f"{found[1]}={node.get(found[1])}: {found[2]}") from error
        raise ValueError(f"_target_={node.get('_target_')}: {' '.join(str(error).split()):.200}") from error
    return node


def _can_be_called(source: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in source:
        raise ValueError("_target_: no value; name a function of training/data/sources.py")
    try:
        signature(resolve_name(source["_target_"])).bind(**{key: source[key] for key in source if key != "_target_"})
    except Exception as error:
        raise ValueError(f"_target_={source.get('_target_')}: {error}") from error
    return source


class Settings(BaseModel):
    """A group of settings, or all settings of a command."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Settings):
    name: Text
    root: Text | None = None
    source: Annotated[dict[str, Any], AfterValidator(_can_be_called)]  # a function of data/sources.py as `_target_`
    cache_dir: PathText
    broken: Literal["refuse", "skip"]
    test_fraction: float = Field(gt=0, lt=1)
    validation_fraction: float = Field(gt=0, lt=1)
    train_limit: Count | None
    validation_limit: Count | None
    test_limit: Count | None
    horizontal_flip: Share


class TransformsSettings(Settings):
    resolution: Literal["model", "native"]
    steps: dict[str, Annotated[dict[str, Any], AfterValidator(_can_be_built)]]


class HeadSettings(Settings):
    hidden_sizes: list[Count]
    dropout: LessThanOne


class ModelSettings(Settings):
    name: Text
    backbone: Text
    weights: Text
    backbone_options: dict[str, Any]
    image_size: Count
    crop_share: float = Field(gt=0, le=1)
    fit: Literal["crop", "squash", "pad"]
    interpolation: Literal["bilinear", "bicubic"]
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[Positive] = Field(min_length=3, max_length=3)
    head: HeadSettings
    flip_average: bool

    @field_validator("backbone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if not timm.is_model(name):
            similar = difflib.get_close_matches(name, timm.list_models(), cutoff=0)
            raise ValueError(f"should be a timm model; did you mean {', '.join(similar)}?")
        return name

    @field_validator("weights")
    @classmethod
    def _is_there(cls, weights: str, others: ValidationInfo) -> str:
        backbone = others.data.get("backbone")
        if weights == "package" and backbone and backbone not in PACKAGES:
            raise ValueError(f"exists for {', '.join(PACKAGES)} only, not for {backbone}")
        if weights not in ("hub", "package", "none") and not Path(weights).is_file():
            raise ValueError("no such file; give hub, package, none, or the file of a local checkpoint")
        return weights

    @property
    def picture_size(self) -> int:
        """The side of the square in whose middle the model sees `image_size` pixels."""
        return round(self.image_size / self.crop_share)

    @property
    def decoding(self) -> Decoding:
        """How pictures are decoded for the model: photos at a reduced size, which still has twice the model's."""
        return Decoding(shorter_side=2 * self.picture_size)


class TrainerSettings(Settings):
    epochs: Count
    min_steps: Count | None
    steps: Count | None
    minutes: Positive | None
    early_stopping: Count | None
    image_size: Count | None
    batch_size: Count
    optimizer: Text
    lr: Positive
    weight_decay: NotNegative
    scheduler: Literal["constant", "cosine"]
    warmup_epochs: NotNegative
    layer_decay: float = Field(gt=0, le=1)
    label_smoothing: LessThanOne
    mixup: NotNegative
    cutmix: NotNegative
    drop_path: LessThanOne | None
    ema: float | None = Field(gt=0, lt=1)
    class_balance: Literal["none", "loss"]
    accumulate_batches: Count
    clip_grad_norm: Positive | None
    freeze_backbone: bool
    frozen_stages: int = Field(ge=0)
    precision: Literal["auto", "no", "fp16", "bf16"]
    compile: bool
    processes: int | Literal["gpu"] = 1  # runs from before there were several name none
    num_workers: int | Literal["auto"]
    resume: Literal["auto", "never"]

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in list_optimizers():
            raise ValueError("should be one of timm's optimizers, such as adam, adamw or sgd")
        return name

    @field_validator("num_workers", mode="before")
    @classmethod
    def _is_a_count(cls, workers: Any) -> Any:
        if workers != "auto" and (type(workers) is not int or workers < 0):
            raise ValueError("should be auto, or how many")
        return workers

    @field_validator("processes", mode="before")
    @classmethod
    def _is_gpu_or_positive(cls, processes: Any) -> Any:
        if processes != "gpu" and (type(processes) is not int or processes < 1):
            raise ValueError("should be gpu, or how many")
        return processes

    @field_validator("minutes")
    @classmethod
    def _is_the_only_length(cls, minutes: float | None, others: ValidationInfo) -> float | None:
        if minutes and others.data.get("steps"):
            raise ValueError(f"trainer.steps={others.data['steps']} says how long to train as well; give one of them")
        return minutes

    @property
    def length(self) -> str:
        """How long training takes, in words."""
        if self.minutes:
            return f"{self.minutes:g} minutes"
        return f"{self.steps} steps" if self.steps else f"{self.epochs} epochs"

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed: where the backbone is frozen, features are not."""
        return bool(self.mixup or self.cutmix) and not self.freeze_backbone

    def of_the_backbone(self) -> list[str]:
        """What is set that has no effect where the backbone is frozen."""
        without = {"image_size": None, "layer_decay": 1.0, "mixup": 0.0, "cutmix": 0.0, "drop_path": None}
        values = {name: getattr(self, name) for name in without}
        return [f"trainer.{name}={value}" for name, value in values.items() if value != without[name]]


class SmallDataSettings(Settings):
    below: Count
    image_size: Count | None = None
    trainer: dict[str, Any] = {}


class ExportSettings(Settings):
    quantize: Literal["none", "int8"]
    half_loss: Change  # of test accuracy, in [0, 1], up to which a version may answer in bf16 or fp16
    int8_loss: Change


class CommandSettings(Settings):
    """What the commands that load pictures have in common."""

    data: DataSettings
    seed: int = Field(ge=0)
    state_dir: PathText


class TrainSettings(CommandSettings):
    model: ModelSettings
    transforms: TransformsSettings
    trainer: TrainerSettings
    small_data: list[SmallDataSettings]
    export: ExportSettings
    evaluation_batch_size: Count
    mlflow_experiment: Text

    @field_validator("model")
    @classmethod
    def _mirror_images_are_the_same(cls, model: ModelSettings, others: ValidationInfo) -> ModelSettings:
        data = others.data.get("data")
        if model.flip_average and data and not data.horizontal_flip:
            raise ValueError(
                "flip_average=true: data.horizontal_flip=0 says that a mirror image means another thing; change either"
            )
        return model

    @field_validator("small_data")
    @classmethod
    def _entries_are_settings(cls, entries: list[SmallDataSettings], others: ValidationInfo) -> list[SmallDataSettings]:
        if not isinstance(trainer := others.data.get("trainer"), TrainerSettings):
            return entries
        for entry in entries:
            try:
                TrainerSettings.model_validate(trainer.model_dump() | entry.trainer)
            except ValidationError as errors:
                error: Any = errors.errors()[0]
                raise ValueError(
                    f"trainer.{'.'.join(map(str, error['loc']))}={error['input']}: {error['msg']}"
                ) from errors
        return entries


class EvaluateSettings(CommandSettings):
    model_uri: Text
    evaluation_batch_size: Count
    report: PathText


class EdaSettings(CommandSettings):
    report: PathText
    near_duplicate: float = Field(gt=0, le=1)
    mlflow_experiment: Text


class CompareSettings(Settings):
    models: list[Text] = Field(min_length=1)
    experiments: list[Text] = Field(min_length=1)
    overrides: list[str]
    report: PathText
    published: dict[str, dict[str, Share]]
