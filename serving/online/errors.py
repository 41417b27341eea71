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
    """Becomes a JSON answer with an HTTP status.

    Args:
        status: 4xx or 503.
        code: for programs, in snake_case.
        message: for people, a sentence or two.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}

    @classmethod
    def of(cls, error: PictureError) -> "Refusal":
        return cls(413 if error.code == "too_many_pixels" else 400, error.code, error.message)


def internal() -> Refusal:
    """A generic 500; details go to the log."""
    return Refusal(500, "internal", "The service failed at this request; its log says why under the request's id.")


def error_answer(refusal: Refusal, request_id: str) -> JSONResponse:
    metrics.REFUSALS.labels(refusal.code).inc()
    error = Error(code=refusal.code, message=refusal.message, request_id=request_id)
    return JSONResponse(error.model_dump(), refusal.status, refusal.headers)


def add_handlers(app: FastAPI) -> None:
    """Gives every error that leaves a route its answer."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return error_answer(refusal, request.state.request_id)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        reasons = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        return error_answer(Refusal(422, "invalid", f"{reasons}."), request.state.request_id)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        """Nobody reads the answer, but it is counted."""
        refusal = Refusal(400, "disconnected", "The request was not sent to its end.")
        return error_answer(refusal, request.state.request_id)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        message = f"{request.method} {request.url.path}: {error.detail.rstrip('.')}."
        refusal = Refusal(error.status_code, code, message, dict(error.headers or {}))
        return error_answer(refusal, request.state.request_id)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        """Starlette raises the error again afterwards, and the gate logs it."""
        return error_answer(internal(), request.state.request_id)
