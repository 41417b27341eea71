"""What an operator can set, by environment variables that begin with SERVING_, and STATE_DIR."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Attributes:
    state_dir: where models, runs and caches are kept.
    model: the registry's `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the path of an ONNX file.
    max_body_bytes: larger requests are refused with 413.
    max_pixels: pictures of more pixels are refused with 413, before they are decoded.
    """

    model_config = SettingsConfigDict(env_prefix="SERVING_")

    model: str = "models:/cifar10-classifier@champion"
    host: str = "127.0.0.1"
    port: int = 3000
    state_dir: Path = Field(Path("state"), validation_alias="STATE_DIR")
    max_body_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
