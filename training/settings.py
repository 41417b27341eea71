"""What the values of a configuration must be; what they mean stands beside them in conf/."""

from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import ValidationError as InvalidSettings

from training.errors import UserError


class Settings(BaseModel):
    """A group of the configuration. Hydra refuses keys that it does not know; further ones are a group's own."""

    model_config = ConfigDict(strict=True, extra="allow")


class DataSettings(Settings):
    name: str
    broken: Literal["refuse", "skip"]
    validation_fraction: float = Field(gt=0, lt=1)
    train_limit: PositiveInt | None
    validation_limit: PositiveInt | None
    test_limit: PositiveInt | None
    horizontal_flip: float = Field(ge=0, le=1)


class TransformsSettings(Settings):
    resolution: Literal["model", "native"]


class HeadSettings(Settings):
    hidden_sizes: list[PositiveInt]
    dropout: float = Field(ge=0, lt=1)


class ModelSettings(Settings):
    backbone: str
    weights: str
    image_size: PositiveInt
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[PositiveFloat] = Field(min_length=3, max_length=3)
    head: HeadSettings


class TrainerSettings(Settings):
    epochs: PositiveInt
    batch_size: PositiveInt
    optimizer: str
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    scheduler: Literal["constant", "cosine"]
    warmup_epochs: NonNegativeFloat
    label_smoothing: float = Field(ge=0, lt=1)
    accumulate_batches: PositiveInt
    clip_grad_norm: PositiveFloat | None
    freeze_backbone: bool
    frozen_stages: NonNegativeInt
    precision: Literal["auto", "no", "fp16", "bf16"]
    compile: bool
    num_workers: NonNegativeInt
    resume: Literal["auto", "never"]


class ExportSettings(Settings):
    quantize: Literal["none", "int8"]


GROUPS: dict[str, type[Settings]] = {
    "data": DataSettings,
    "transforms": TransformsSettings,
    "model": ModelSettings,
    "trainer": TrainerSettings,
    "export": ExportSettings,
}


def require_valid(config: DictConfig) -> None:
    """Raises UserError where a value is missing, of the wrong type, or out of its range."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"no value for {', '.join(missing)}; give {missing[0]}=VALUE")
    values: Any = OmegaConf.to_container(config, resolve=True)
    for name in GROUPS.keys() & values.keys():
        try:
            GROUPS[name].model_validate(values[name])
        except InvalidSettings as errors:
            error = errors.errors()[0]
            key = ".".join(map(str, (name, *error["loc"])))
            expected = error["msg"].removeprefix("Input should be ")
            raise UserError(f"{key}={error['input']}: should be {expected}") from errors
