"""Why a request is refused, and the one form of every error's answer."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.model.errors import PictureError
from serving.online import metrics
from serving.online.schemas import Error


class Refusal(Exception):
    """Becomes a JSON answer with an HTTP status, a code for programs and a sentence or two for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def internal() -> Refusal:
    """A generic 500; details go to the log."""
    return Refusal(500, "internal", "The service failed at this request; its log says why under the request's id.")


def error_answer(refusal: Refusal, request_id: str) -> JSONResponse:
    metrics.REFUSALS.labels(refusal.code).inc()
    error = Error(code=refusal.code, message=refusal.message, request_id=request_id)
    return JSONResponse(error.model_dump(), refusal.status, refusal.headers)


def add_handlers(app: FastAPI) -> None:
    """Gives every error that leaves a route its answer."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return error_answer(_refusal(request, error), request.state.request_id)

    for kind in (Refusal, PictureError, RequestValidationError, ClientDisconnect, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _refusal(request: Request, error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case PictureError(code=code, message=message):
            return Refusal(413 if code == "too_many_pixels" else 400, code, message)
        case RequestValidationError():
            reasons = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
            return Refusal(422, "invalid", f"{reasons}.")
        case ClientDisconnect():  # nobody reads the answer, but it is counted
            return Refusal(400, "disconnected", "The client disconnected before the request was complete.")
        case HTTPException(status_code=status, detail=detail):
            code = HTTPStatus(status).phrase.lower().replace(" ", "_")
            message = f"{request.method} {request.url.path}: {detail.rstrip('.')}."
            return Refusal(status, code, message, dict(error.headers or {}))
    return internal()  # Starlette raises the error again afterwards, and the gate logs it
