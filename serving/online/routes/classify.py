"""POST /classify and /classify_batch: which class a picture shows."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from starlette.requests import Request

from serving.model.errors import PictureError
from serving.model.predictor import Predictor
from serving.online import metrics, schemas
from serving.online.batcher import Batcher
from serving.online.routes.uploads import Upload, read_picture, read_pictures


async def classify_one(
    predictor: Predictor, batcher: Batcher, image: Request | Path, top_k: int | None
) -> schemas.Classification:
    """The answer to a request, or to a file. Raises Refusal and PictureError."""
    upload, request_id = await _received(batcher, image, read_picture, top_k)
    (answer,) = await batcher.predict(predictor, upload.pictures)
    if isinstance(answer, PictureError):
        raise answer
    prediction = _prediction(predictor, answer, upload.top_k)
    return schemas.Classification(**dict(prediction), model=schemas.ModelName.of(predictor), request_id=request_id)


async def classify_several(
    predictor: Predictor, batcher: Batcher, images: Request | Sequence[Path], top_k: int | None, max_pictures: int
) -> schemas.Classifications:
    """The answers to a request, or to files; a broken picture has an error in its place. Raises Refusal."""
    upload, request_id = await _received(batcher, images, lambda request: read_pictures(request, max_pictures), top_k)
    answers = await batcher.predict(predictor, upload.pictures)
    results = [_result(predictor, each, upload.top_k) for each in answers]
    return schemas.Classifications(results=results, model=schemas.ModelName.of(predictor), request_id=request_id)


async def _received(
    batcher: Batcher,
    given: Request | Path | Sequence[Path],
    read: Callable[[Request], Awaitable[Upload]],
    top_k: int | None,
) -> tuple[Upload, str]:
    """What a request or a caller in this process has given, and the request's id."""
    batcher.check_room()
    if isinstance(given, Request):
        return await read(given), given.state.request_id
    paths = [given] if isinstance(given, Path) else given
    return Upload([await asyncio.to_thread(path.read_bytes) for path in paths], top_k), uuid.uuid4().hex


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
