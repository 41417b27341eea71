"""The BentoML service and its routes."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import bentoml
import numpy as np
from fastapi import FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from serving.errors import Refusal
from serving.images import decode
from serving.predictor import Predictor, fetch
from serving.settings import Settings

SETTINGS = Settings()


class ModelInfo(BaseModel):
    """Which model answered, and what it was trained on."""

    name: str
    version: str
    run_id: str
    data: str


class Classification(BaseModel):
    """The classes of one picture; the probabilities add up to 1."""

    label: str
    confidence: float
    probabilities: dict[str, float]
    model: ModelInfo
    request_id: str


class Error(BaseModel):
    """Why a request was refused: a code for programs, a sentence for people."""

    code: str
    message: str
    request_id: str


app = FastAPI(
    title="Image classifier",
    version="1",
    responses={status: {"model": Error} for status in (400, 413, 422)},
    docs_url=None,
    redoc_url=None,
)


@app.middleware("http")
async def identify(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Gives every request an id, or keeps the caller's, and refuses bodies that are too large unread."""
    request.state.id = request.headers.get("x-request-id", "")[:100] or uuid.uuid4().hex
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > SETTINGS.max_body_bytes:
        message = f"The request has {length} bytes; at most {SETTINGS.max_body_bytes} are taken."
        response: Response = _error(request, 413, "too_large", message)
    else:
        response = await call_next(request)
    response.headers["x-request-id"] = request.state.id
    return response


@app.exception_handler(Refusal)
async def refused(request: Request, refusal: Refusal) -> JSONResponse:
    return _error(request, refusal.status, refusal.code, refusal.message)


@app.exception_handler(RequestValidationError)
async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    reasons = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
    return _error(request, 422, "invalid", f"{reasons}. Send the picture as the form field image.")


@app.exception_handler(HTTPException)
async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    return _error(request, error.status_code, "http", f"{error.detail}.")


def _error(request: Request, status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse(Error(code=code, message=message, request_id=request.state.id).model_dump(), status)


@bentoml.service(name="classifier")
@bentoml.asgi_app(app)
class Classifier:
    """Answers with the registry's champion."""

    def __init__(self) -> None:
        self.predictor = Predictor(fetch(SETTINGS.model, SETTINGS.state_dir))

    @app.post("/classify")
    async def classify(self, request: Request, image: UploadFile) -> Classification:
        """Classifies one picture: curl -F image=@cat.png http://localhost:3000/classify"""
        predictor = self.predictor

        def answer(content: bytes) -> np.ndarray:
            return predictor.predict(decode(content, SETTINGS.max_pixels)[None])[0]

        probabilities = await asyncio.to_thread(answer, await image.read())
        best = int(probabilities.argmax())
        return Classification(
            label=predictor.classes[best],
            confidence=float(probabilities[best]),
            probabilities=dict(zip(predictor.classes, probabilities.tolist(), strict=True)),
            model=ModelInfo(
                name=predictor.metadata["model_name"],
                version=predictor.version,
                run_id=predictor.metadata["mlflow_run_id"],
                data=predictor.metadata["data_name"],
            ),
            request_id=request.state.id,
        )
