"""What an ONNX file of ours takes, answers, and says of itself: written by the export, read by the predictor."""

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serving.model.pictures.decoding import Decoding
from serving.model.precision import Precision

INPUT = "images"  # uint8 (N, H, W, 3), RGB, for any N, H and W
OUTPUT = "probabilities"  # float32 (N, classes); each row adds up to 1
MODEL_FILE = "model.onnx"  # in the registry

# What the metadata of new files means. Files from before there was such a number are of contract 0.
CONTRACT = 1


class Measured(BaseModel):
    """What a precision costs and gains, over the whole test set, in the runtime that answers so."""

    model_config = ConfigDict(frozen=True)

    precision: Precision  # bf16, int8 or fp16
    runtime: str  # openvino or onnxruntime
    accuracy: float
    changed: float  # the share of pictures that get another class than in float32
    largest_change: float  # of a probability
    speed: float  # how many times as fast as ONNX Runtime in float32 on the same device of the machine that exported it
    allowed: bool  # whether the accuracy loses no more than its bound


class Metadata(BaseModel):
    """An ONNX file's metadata, where every value is a string: strings verbatim, all else as JSON."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    contract: int = 0  # what the other values mean
    classes: list[str]  # in the order of the probabilities
    model_name: str
    mlflow_run_id: str
    data_name: str  # of the pictures that it was trained on
    image_size: int | None = None  # height and width, in pixels, that Resize makes of a picture
    mean: list[float] | None = None  # of Normalize, per RGB channel, for pixels scaled to [0, 1]
    std: list[float] | None = None
    interpolation: str | None = None  # of Resize
    fit: str | None = None  # how a picture becomes a square: crop, squash or pad; contract 0: squash
    crop_share: float | None = None  # the share of height and width that is looked at, in the middle
    decode_shorter_side: int | None = None  # see Decoding; contract 0: at full size
    quantization: str | None = None  # none or int8: of files from before there was `precision`
    precision: Precision | None = None  # that the file has: fp32, int8 or fp16
    measured: list[Measured] = Field(default_factory=list)  # the other precisions of its version
    git_commit: str | None = None  # that trained it
    git_dirty: str | None = None  # whether files differed from the commit: true, false or unknown
    data_fingerprint: str | None = None  # the SHA-256 of the pictures
    test: dict[str, float] = Field(default_factory=dict)  # shares such as accuracy; in the file each is a `test_` value

    @field_validator("classes")
    @classmethod
    def _are_names(cls, classes: list[str]) -> list[str]:
        if not all(classes) or len(set(classes)) < len(classes) or not classes:
            raise ValueError("the classes need names, each another one")
        return classes

    @property
    def decoding(self) -> Decoding:
        """How pictures for this file are decoded."""
        return Decoding(self.decode_shorter_side, as_shown=self.contract >= 1)

    @property
    def own_precision(self) -> Precision:
        """The file's own precision, also of files from before `precision` was written."""
        return self.precision or ("int8" if self.quantization == "int8" else "fp32")

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> "Metadata":
        """Reads a file's metadata; raises ValueError if it is not that of a file of ours, or is of a later contract."""
        texts = {
            name for name, field in cls.model_fields.items() if field.annotation in (str, str | None, Precision | None)
        }
        known = {name: properties[name] for name in properties if name in cls.model_fields or name[:5] == "test_"}
        values = {name: text if name in texts else json.loads(text) for name, text in known.items()}
        test = {name[5:]: value for name, value in values.items() if name[:5] == "test_"}
        metadata = cls.model_validate({**values, "test": test})
        if metadata.contract > CONTRACT:
            raise ValueError(f"it is of contract {metadata.contract}, this program knows {CONTRACT}; update it")
        return metadata

    def properties(self) -> dict[str, str]:
        """All values that are known, as the file keeps them."""
        values = self.model_dump(exclude_none=True)
        values |= {f"test_{name}": value for name, value in values.pop("test").items()}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
