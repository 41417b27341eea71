"""What an operator can set, by environment variables that begin with SERVING_, and STATE_DIR."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving.model.cpus import MAX_BATCH, cpus
from serving.model.errors import UserError
from serving.model.pictures.decoding import MAX_PIXELS
from serving.model.pictures.memory import MAX_PIXEL_BYTES
from serving.model.precision import Choice
from serving.model.registry import champion_uri
from serving.model.runtime import available, default_providers


class Settings(BaseSettings):
    """Lists are comma-separated; docs/settings.md says more."""

    model_config = SettingsConfigDict(env_prefix="SERVING_")

    # models:/NAME@ALIAS (followed as it changes) or models:/NAME/VERSION, or an ONNX file
    model: str = Field(default_factory=champion_uri)
    host: str = "127.0.0.1"
    port: int = 3000
    state_dir: Path = Field(Path("state"), validation_alias="STATE_DIR")
    providers: Annotated[tuple[str, ...], NoDecode] = Field(default_factory=default_providers)
    precision: Choice = "fp32"  # that the model answers in, where its version allows it; auto: the quickest of these
    poll_seconds: PositiveFloat = 10  # how often the registry is asked whether the alias names another version
    tokens: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    public_paths: Annotated[tuple[str, ...], NoDecode] = ("/livez", "/readyz", "/healthz", "/metrics")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    root_path: str = ""  # the prefix under which a proxy shows the service, such as /cats
    max_body_bytes: PositiveInt = 32_000_000  # larger requests are refused with 413
    max_held_bytes: PositiveInt = 256_000_000  # of all requests that are here; while they are, further ones get 429
    receive_seconds: PositiveFloat = 10  # a request of which no byte arrives for so long gets 408
    receive_rate: PositiveInt = 10_000  # bytes a second; what arrives more slowly gets 408, after receive_seconds
    max_pixels: PositiveInt = MAX_PIXELS  # pictures of more pixels are refused with 413, before they are decoded
    max_pixel_bytes: PositiveInt = MAX_PIXEL_BYTES  # of pictures over a megapixel that are decoded at a time, 4 a pixel
    max_pictures: PositiveInt = 64  # of a request
    max_queue: PositiveInt = 128  # pictures that may wait or run; while they do, further ones are refused with 429
    max_batch: PositiveInt = MAX_BATCH  # of one run of the model; a GPU has use for 32 and more
    max_seconds: PositiveFloat = 10  # a request that is not answered so long after it has arrived gets 503

    @field_validator("precision", "providers", "max_batch", mode="before")
    @classmethod
    def _default(cls, value: Any, info: ValidationInfo) -> Any:
        """For what infra/compose.yaml hands on empty where it is not set."""
        return value or cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)

    @field_validator("root_path")
    @classmethod
    def _one_slash(cls, value: str) -> str:
        return f"/{value.strip('/')}" if value.strip("/") else ""

    @field_validator("providers", "tokens", "public_paths", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _full_requests_fit(self) -> "Settings":
        if self.max_pictures > self.max_queue:
            raise ValueError(
                f"SERVING_MAX_PICTURES={self.max_pictures} can't be more than SERVING_MAX_QUEUE={self.max_queue}: "
                "such a request would never be accepted"
            )
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"SERVING_MAX_BODY_BYTES={self.max_body_bytes} can't be more than "
                f"SERVING_MAX_HELD_BYTES={self.max_held_bytes}: such a request would never be accepted"
            )
        return self

    @property
    def longest_seconds(self) -> float:
        """Of a request, from its first byte to the end of its answer's time."""
        return self.receive_seconds + self.max_body_bytes / self.receive_rate + self.max_seconds


def load_settings(**given: Any) -> Settings:
    """The settings of the environment, except for those that are given; raises UserError where one is wrong."""
    cpus()  # SERVING_THREADS, which is read when there is a model
    try:
        settings = Settings(**given)
    except ValidationError as errors:
        raise UserError("; ".join(map(_problem, errors.errors()))) from errors
    available(settings.providers)
    return settings


def _problem(error: ErrorDetails) -> str:
    """What is wrong with the value of which variable; the last validator's words speak of several by themselves."""
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    return f"SERVING_{str(error['loc'][0]).upper()}={error['input']}: {error['msg'].lower()}"
