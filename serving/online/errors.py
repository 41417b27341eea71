"""Why a request is refused, and the one form of every error's answer."""

import logging
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.model.errors import PictureError, is_out_of_memory
from serving.online import metrics
from serving.online.schemas import Error

log = logging.getLogger("bentoml.serving")  # BentoML prints what its own loggers say


class Refusal(Exception):
    """Becomes a JSON answer with an HTTP status, a code for programs and a sentence or two for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to whatever went wrong; what is nobody's fault but ours is logged with its traceback."""
    request_id = request.state.request_id
    refusal = _refusal(request, error)
    if refusal.code in ("internal", "out_of_memory"):
        log.error("request %s failed", request_id, exc_info=error)
    metrics.REFUSALS.labels(refusal.code).inc()
    message = refusal.message.encode(errors="replace").decode()  # a form's names may hold half a character
    answer = Error(code=refusal.code, message=message, request_id=request_id)
    return Response(answer.model_dump_json(), refusal.status, refusal.headers, "application/json")


def _refusal(request: Request, error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case PictureError(code=code, message=message):
            return Refusal(413 if code == "too_many_pixels" else 400, code, message)
        case ClientDisconnect():  # nobody reads the answer, but it is counted
            return Refusal(400, "disconnected", "The client disconnected before the request was complete.")
        case HTTPException(status_code=status, detail=detail):
            code = HTTPStatus(status).phrase.lower().replace(" ", "_")
            message = f"{request.method} {request.url.path}: {detail.rstrip('.')}."
            return Refusal(status, code, message, dict(error.headers or {}))
    if is_out_of_memory(error):
        message = "There is not enough memory for this request now. Try later, or send less at a time."
        return Refusal(503, "out_of_memory", message, {"retry-after": "10"})
    return Refusal(500, "internal", "The service failed at this request; its log says why under the request's id.")
