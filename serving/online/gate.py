"""What every request passes: its id, token, size and time. (How many pictures may wait is batcher.py's.)"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.online import metrics
from serving.online.errors import Refusal, error_answer, internal
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # The page's own files, and the pictures that it shows before it sends them.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'; object-src 'none'",
}
PAGE = "/ui"  # needs no token: it asks for one
REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


class Gate:
    """Stands before BentoML's own routes too. Requests are counted by path for `routes`, all others as `other`."""

    def __init__(self, app: ASGIApp, settings: Settings, routes: Collection[str]) -> None:
        self._app = app
        self._tokens = [token.get_secret_value().encode() for token in settings.tokens]
        self._public = {"/", PAGE, *settings.public_paths}
        self._settings = settings
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, received = time.perf_counter(), 0, 0
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check_size(received)
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    answer[name] = value
            await send(message)

        refusal: Refusal | None = None
        try:
            async with asyncio.timeout(self._settings.max_seconds) as limit:
                self._check_token(scope["path"], headers.get("authorization", "").encode("latin-1"))
                length = headers.get("content-length", "")
                self._check_size(int(length) if length.isdecimal() else 0)
                await self._app(scope, limited_receive, send_with_headers)
        except Refusal as error:
            refusal = error
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                message = f"There was no answer within {self._settings.max_seconds:g} seconds; ask again later."
                refusal = Refusal(503, "timeout", message, {"retry-after": "1"})
            else:
                log.exception("request %s failed", request_id)
                refusal = internal()
        if refusal and not status:
            await error_answer(refusal, request_id)(scope, receive, send_with_headers)
        path = scope["path"].rstrip("/") or "/"
        route = path if path in self._routes else "other"
        metrics.REQUESTS.labels(route, status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - start)

    def _check_token(self, path: str, authorization: bytes) -> None:
        if not self._tokens or path in self._public or path.startswith(f"{PAGE}/"):
            return
        scheme, _, token = authorization.partition(b" ")
        # All are compared, each in constant time: how long it takes tells nothing of them.
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        if scheme.lower() != b"bearer" or not any(matches):
            message = "A token is required: Authorization: Bearer TOKEN." if not token else "The token is wrong."
            raise Refusal(401, "unauthorized", message, {"www-authenticate": "Bearer"})

    def _check_size(self, size: int) -> None:
        if size > (limit := self._settings.max_body_bytes):
            message = f"The request has {size} bytes or more; at most {limit} are accepted."
            raise Refusal(413, "too_large", message)
