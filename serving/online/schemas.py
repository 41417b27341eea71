"""The JSON of requests and answers."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from serving.model.contract import Measured
from serving.model.predictor import Predictor

MODEL = {"name": "efficientnet_lite0", "version": "3", "run_id": "0f3a5c", "data": "cifar10", "precision": "fp32"}
SAID = {"precision": "bf16", "runtime": "openvino", "accuracy": 0.97, "changed": 0.01, "largest_change": 0.2}
MEASURED = {**SAID, "speed": 1.7, "allowed": True}
PREDICTION = {"label": "cat", "confidence": 0.97, "probabilities": {"cat": 0.97, "dog": 0.03}}
PROBLEM = {"code": "broken_picture", "message": "The picture is broken: image file is truncated."}


def _example(**example: Any) -> ConfigDict:
    # In the form of OpenAPI 3.0: BentoML's document knows no other.
    return ConfigDict(json_schema_extra={"example": example}, protected_namespaces=())


class PictureJson(BaseModel):
    """A picture in a JSON request."""

    model_config = _example(image="iVBORw0KGgo...")
    image: str = Field(description="An image file in base64, also as a data URL.")
    top_k: int | None = Field(None, ge=1)


class _Unread(bentoml.IODescriptor):
    """What BentoML's clients are told to send. A request comes as it is: reading and refusing it is uploads.py's."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "_Unread":
        return cls.model_construct(**{next(iter(cls.model_fields)): request})


ImageFile = Annotated[Path, ContentType("image/*")]


class OnePicture(_Unread):
    """A picture, and how many of the likeliest classes to answer; None: all."""

    image: ImageFile
    top_k: int | None = None


class SeveralPictures(_Unread):
    """Pictures, and how many of the likeliest classes to answer for each; None: all."""

    images: list[ImageFile]
    top_k: int | None = None


class ModelName(BaseModel):
    """Which model answered, and what it was trained on."""

    model_config = _example(**MODEL)
    name: str
    version: str
    run_id: str
    data: str
    precision: str = Field(description="The precision it answered in: fp32, bf16, int8 or fp16.")

    @classmethod
    def of(cls, predictor: Predictor) -> "ModelName":
        said = predictor.metadata
        return cls(
            name=said.model_name,
            version=predictor.version,
            run_id=said.mlflow_run_id,
            data=said.data_name,
            precision=predictor.precision,
        )


class ModelInfo(ModelName):
    """The model that answers, as it describes itself."""

    model_config = _example(
        **MODEL,
        classes=["cat", "dog"],
        metrics={"test_accuracy": 0.97},
        measured=[MEASURED],
        metadata={"image_size": "224", "git_commit": "0f3a5c"},
        loaded_at="2026-01-31T12:00:00Z",
        runtime="onnxruntime",
        providers=["CPUExecutionProvider"],
        lacks=["bf16 in openvino: this CPU does not compute in bf16"],
    )
    classes: list[str]
    metrics: dict[str, float] = Field(description="Over the test set, in this precision, when it was exported.")
    measured: list[Measured] = Field(description="What other precisions cost and gain.")
    metadata: dict[str, str] = Field(description="What its ONNX file says of itself.")
    loaded_at: datetime
    runtime: str = Field(description="What runs it: onnxruntime or openvino.")
    providers: list[str] = Field(description="ONNX Runtime's providers in order of preference, or OpenVINO's device.")
    lacks: list[str] = Field(description="What is chosen, but not to be had here, with the reasons.")


class Prediction(BaseModel):
    """The classes of one picture, the likeliest first; all probabilities add up to 1."""

    model_config = _example(**PREDICTION)
    label: str
    confidence: float
    probabilities: dict[str, float]


class Classification(Prediction):
    """What a picture shows."""

    model_config = _example(**PREDICTION, model=MODEL, request_id="6f1c")
    model: ModelName
    request_id: str


class PictureProblem(BaseModel):
    """Why a picture among others has no answer."""

    model_config = _example(**PROBLEM)
    code: str
    message: str


class BrokenPicture(BaseModel):
    """Stands in the place of a picture that has no answer."""

    error: PictureProblem


class Classifications(BaseModel):
    """One result a picture, in the order of the request."""

    model_config = _example(results=[PREDICTION, {"error": PROBLEM}], model=MODEL, request_id="6f1c")
    results: list[Prediction | BrokenPicture]
    model: ModelName
    request_id: str


class Error(PictureProblem):
    """Why a request was refused: a code for programs, a sentence for people."""

    model_config = _example(**PROBLEM, request_id="6f1c")
    request_id: str
