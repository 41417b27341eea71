"""The BentoML service and its routes."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from serving import metrics
from serving.batcher import Batcher
from serving.champion import Champion
from serving.errors import Refusal
from serving.middleware import Gate, error_answer, failure
from serving.predictor import Predictor
from serving.schemas import (
    BrokenPicture,
    Classification,
    Classifications,
    Error,
    ModelInfo,
    ModelName,
    PictureError,
    PictureJson,
    Prediction,
)
from serving.settings import Settings
from serving.uploads import FORM, IMAGE_TYPES, JSON, read_picture, read_pictures

SETTINGS = Settings()

TopK = Annotated[int | None, Query(ge=1, description="How many of the likeliest classes to answer; all by default.")]
BINARY = {"type": "string", "format": "binary"}


def body(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a route reads by itself, for the OpenAPI document."""
    return {"requestBody": {"required": True, "content": content}}


def form(field: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {FORM: {"schema": {"type": "object", "required": [field], "properties": {field: schema}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": HTTPStatus(status).phrase} for status in statuses}


app = FastAPI(
    title="Image classifier",
    version="1",
    openapi_url="/docs.json",
    docs_url=None,
    redoc_url=None,
    responses=refusals(401, 503),
    # For the OpenAPI document; the middleware asks for the token, on every route.
    dependencies=[Security(HTTPBearer(auto_error=False))] if SETTINGS.tokens else [],
)


@app.exception_handler(Refusal)
async def refused(request: Request, refusal: Refusal) -> JSONResponse:
    return error_answer(refusal, request.state.request_id)


@app.exception_handler(RequestValidationError)
async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    reasons = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
    return error_answer(Refusal(422, "invalid", f"{reasons}."), request.state.request_id)


@app.exception_handler(ClientDisconnect)
async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
    """Nobody reads the answer; it is counted, and no failure of ours."""
    return error_answer(Refusal(400, "disconnected", "The request was not sent to its end."), request.state.request_id)


@app.exception_handler(Exception)
async def failed(request: Request, error: Exception) -> JSONResponse:
    """The error itself goes on to the middleware, which logs it."""
    return error_answer(failure(), request.state.request_id)


@app.exception_handler(HTTPException)
async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {error.detail.rstrip('.')}."
    refusal = Refusal(error.status_code, code, message, dict(error.headers or {}))
    return error_answer(refusal, request.state.request_id)


@app.post(
    "/classify",
    responses=refusals(400, 413, 415, 422, 429),
    openapi_extra=body(
        {
            **form("image", BINARY),
            **{kind: {"schema": BINARY} for kind in IMAGE_TYPES},
            JSON: {"schema": PictureJson.model_json_schema()},
        }
    ),
)
async def classify(request: Request, top_k: TopK = None) -> Classification:
    """Classifies one picture.

    curl -F image=@cat.png http://localhost:3000/classify
    curl --data-binary @cat.png -H 'Content-Type: image/png' http://localhost:3000/classify?top_k=3
    """
    predictor, batcher = champion().predictor, queue()
    batcher.check_room()
    (answer,) = await batcher.predict(predictor, [await read_picture(request)])
    if isinstance(answer, Refusal):
        raise answer
    prediction = predicted(predictor, answer, top_k)
    return Classification(**dict(prediction), model=ModelName.of(predictor), request_id=request.state.request_id)


@app.post(
    "/classify_batch",
    responses=refusals(400, 413, 415, 422, 429),
    openapi_extra=body(form("images", {"type": "array", "items": BINARY, "maxItems": SETTINGS.max_pictures})),
)
async def classify_batch(request: Request, top_k: TopK = None) -> Classifications:
    """Classifies several pictures; a broken one has an error in its place, and the others are answered.

    curl -F images=@cat.png -F images=@dog.png http://localhost:3000/classify_batch
    """
    predictor, batcher = champion().predictor, queue()
    batcher.check_room()
    answers = await batcher.predict(predictor, await read_pictures(request, SETTINGS.max_pictures))
    return Classifications(
        results=[in_its_place(predictor, answer, top_k) for answer in answers],
        model=ModelName.of(predictor),
        request_id=request.state.request_id,
    )


@app.get("/model")
async def model() -> ModelInfo:
    """Describes the model that answers."""
    predictor = champion().predictor
    metadata = predictor.metadata
    return ModelInfo(
        **dict(ModelName.of(predictor)),
        classes=predictor.classes,
        metrics={key: float(value) for key, value in metadata.items() if key.startswith("test_")},
        metadata=metadata,
        loaded_at=predictor.loaded_at,
        providers=predictor.providers,
    )


@app.get("/metrics", response_class=Response)
async def prometheus() -> Response:
    """What Prometheus scrapes."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


@app.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    return RedirectResponse("ui/")


app.mount("/ui", StaticFiles(directory=Path(__file__).parent / "web", html=True))


def predicted(predictor: Predictor, probabilities: np.ndarray, top_k: int | None) -> Prediction:
    """Names the classes of one picture's probabilities, float32 (classes,), the likeliest first."""
    order: Sequence[int] = np.argsort(-probabilities, kind="stable").tolist()
    label, confidence = predictor.classes[order[0]], float(probabilities[order[0]])
    metrics.PREDICTIONS.labels(label).inc()
    metrics.CONFIDENCE.observe(confidence)
    return Prediction(
        label=label,
        confidence=confidence,
        probabilities={predictor.classes[index]: float(probabilities[index]) for index in order[:top_k]},
    )


def in_its_place(predictor: Predictor, answer: np.ndarray | Refusal, top_k: int | None) -> Prediction | BrokenPicture:
    if isinstance(answer, Refusal):
        metrics.REFUSALS.labels(answer.code).inc()
        return BrokenPicture(error=PictureError(code=answer.code, message=answer.message))
    return predicted(predictor, answer, top_k)


# Handed over as a function, the app gets every path that is not BentoML's own, and so answers what is not there.
@bentoml.asgi_app(app.__call__)
@bentoml.service(
    name="classifier",
    metrics={"enabled": False},  # it keeps a series for every path that anybody asks for; serving/metrics.py has ours
    # Neither goes anywhere by default, and both cost each request time; the gate counts and names every request.
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    traffic={"timeout": SETTINGS.max_seconds + 5},  # the gate's own limit comes first, with an answer of our form
)
class Classifier:
    """Answers with the registry's champion."""

    @bentoml.on_startup
    async def start(self) -> None:
        app.state.champion = Champion(SETTINGS)
        app.state.batcher = Batcher(SETTINGS.max_queue, SETTINGS.max_batch, SETTINGS.max_pixels)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await champion().close()
        await queue().close()

    async def __is_ready__(self) -> bool:
        return champion().predictor is not None  # raises a refusal until there is one


def champion() -> Champion:
    return app.state.champion


def queue() -> Batcher:
    return app.state.batcher


service: Any = Classifier  # bentoml.service's annotations hide what it returns
if SETTINGS.cors_origins:
    service.add_asgi_middleware(
        CORSMiddleware,
        allow_origins=SETTINGS.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
service.add_asgi_middleware(
    Gate,
    settings=SETTINGS,
    routes=["/classify", "/classify_batch", "/model", "/metrics", "/livez", "/readyz", "/docs.json", "/ui/"],
)
