"""POST /classify and /classify_batch: which class a picture shows."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request

from serving.model.errors import PictureError
from serving.model.predictor import Predictor
from serving.online import metrics, schemas
from serving.online.routes.uploads import FORM, IMAGE_TYPES, JSON, read_picture, read_pictures
from serving.settings import Settings

TopK = Annotated[int | None, Query(ge=1, description="How many of the likeliest classes to answer; all by default.")]
BINARY = {"type": "string", "format": "binary"}


def add_routes(app: FastAPI, settings: Settings) -> None:
    refusals = schemas.error_answers(400, 413, 415, 422, 429)
    one = {
        **_form("image", BINARY),
        **{kind: {"schema": BINARY} for kind in IMAGE_TYPES},
        JSON: {"schema": schemas.PictureJson.model_json_schema()},
    }

    @app.post("/classify", responses=refusals, openapi_extra=_body(one))
    async def classify(request: Request, top_k: TopK = None) -> schemas.Classification:
        """Classifies one picture.

        curl -F image=@cat.png http://localhost:3000/classify
        curl --data-binary @cat.png -H 'Content-Type: image/png' http://localhost:3000/classify?top_k=3
        """
        predictor, batcher = request.app.state.champion.predictor, request.app.state.batcher
        batcher.check_room()
        (answer,) = await batcher.predict(predictor, [await read_picture(request)])
        if isinstance(answer, PictureError):
            raise answer
        answered = {"model": schemas.ModelName.of(predictor), "request_id": request.state.request_id}
        return schemas.Classification(**dict(_prediction(predictor, answer, top_k)), **answered)

    several = _form("images", {"type": "array", "items": BINARY, "maxItems": settings.max_pictures})

    @app.post("/classify_batch", responses=refusals, openapi_extra=_body(several))
    async def classify_batch(request: Request, top_k: TopK = None) -> schemas.Classifications:
        """Classifies several pictures; a broken one has an error in its place, and the others are answered.

        curl -F images=@cat.png -F images=@dog.png http://localhost:3000/classify_batch
        """
        predictor, batcher = request.app.state.champion.predictor, request.app.state.batcher
        batcher.check_room()
        answers = await batcher.predict(predictor, await read_pictures(request, settings.max_pictures))
        answered = {"model": schemas.ModelName.of(predictor), "request_id": request.state.request_id}
        return schemas.Classifications(results=[_result(predictor, each, top_k) for each in answers], **answered)


def _body(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a route reads by itself, for the OpenAPI document."""
    return {"requestBody": {"required": True, "content": content}}


def _form(field: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {FORM: {"schema": {"type": "object", "required": [field], "properties": {field: schema}}}}


def _prediction(predictor: Predictor, probabilities: np.ndarray, top_k: int | None) -> schemas.Prediction:
    """Names the classes of one picture's probabilities, float32 (classes,), the likeliest first."""
    order: list[int] = np.argsort(-probabilities, kind="stable").tolist()
    label, confidence = predictor.classes[order[0]], float(probabilities[order[0]])
    metrics.PREDICTIONS.labels(label).inc()
    metrics.CONFIDENCE.observe(confidence)
    return schemas.Prediction(
        label=label,
        confidence=confidence,
        probabilities={predictor.classes[index]: float(probabilities[index]) for index in order[:top_k]},
    )


def _result(
    predictor: Predictor, answer: np.ndarray | PictureError, top_k: int | None
) -> schemas.Prediction | schemas.BrokenPicture:
    if isinstance(answer, PictureError):
        metrics.REFUSALS.labels(answer.code).inc()
        return schemas.BrokenPicture(error=schemas.PictureProblem(code=answer.code, message=answer.message))
    return _prediction(predictor, answer, top_k)
