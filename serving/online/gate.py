"""What every request passes: its id, token, size and time. (How many pictures may wait is batcher.py's.)"""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.online import metrics
from serving.online.errors import Refusal, answer_error
from serving.settings import Settings

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
        self._held = 0  # bytes of all bodies that are here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, phase = time.perf_counter(), 0, "not asked for"  # of the body; then: arriving, here, unwanted
        listener: asyncio.Task[None] | None = None
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        path = self._without_prefix(scope["path"])
        scope = {**scope, "path": path, "state": {**scope.get("state", {}), "request_id": request_id}}
        body = _Body(self._settings)

        async def limited_receive() -> Message:
            nonlocal phase, listener
            if phase == "here":
                return await receive()
            phase = "arriving"
            limit.reschedule(body.deadline)
            message = await receive()
            size = len(message.get("body", b""))
            self._held += size
            body.add(size, self._held)
            if not message.get("more_body"):
                phase = "here"
                limit.reschedule(body.now + self._settings.max_seconds)
                listener = asyncio.create_task(end_when_nobody_waits())
            return message

        async def end_when_nobody_waits() -> None:
            nonlocal phase
            while (await receive())["type"] != "http.disconnect":
                pass
            if not status:
                phase = "unwanted"
                limit.reschedule(body.now)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    answer[name] = value
            await send(message)

        failure: Exception | None = None
        try:
            # The time for the answer begins when the body is there.
            async with asyncio.timeout(self._settings.max_seconds) as limit:
                if path == self._settings.root_path != "":
                    # Relative to where it was asked for, as all redirects.
                    return await RedirectResponse(f"{path.rpartition('/')[2]}/")(scope, receive, send_with_headers)
                self._check_token(path, headers.get("authorization", "").encode("latin-1"))
                body.check(headers, self._held)
                await self._app(scope, limited_receive, send_with_headers)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            failure = Refusal(503, "stopping", "The service is being stopped; ask again in a moment.")
        except Exception as error:
            failure = error
            if isinstance(error, TimeoutError) and limit.expired():
                message = f"There was no answer within {self._settings.max_seconds:g} seconds; ask again later."
                failure = Refusal(503, "timeout", message, {"retry-after": "1"})
                if phase == "arriving":
                    failure = body.too_slow()
                if phase == "unwanted":
                    failure = ClientDisconnect()
        finally:
            self._held -= body.size
            if listener:
                listener.cancel()
        if failure and not status:
            answer = await answer_error(Request(scope), failure)
            await answer(scope, receive, send_with_headers)
        path = path.rstrip("/") or "/"
        route = path if path in self._routes else "other"
        metrics.REQUESTS.labels(route, status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - start)

    def _without_prefix(self, path: str) -> str:
        """The path as it is here, whether or not the proxy in front has taken SERVING_ROOT_PATH off."""
        prefix = self._settings.root_path
        return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path

    def _check_token(self, path: str, authorization: bytes) -> None:
        if not self._tokens or path in self._public or path.startswith(f"{PAGE}/"):
            return
        scheme, _, token = authorization.partition(b" ")
        # All are compared, each in constant time: how long it takes tells nothing of them.
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        if scheme.lower() != b"bearer" or not any(matches):
            message = "A token is required: Authorization: Bearer TOKEN." if not token else "The token is wrong."
            raise Refusal(401, "unauthorized", message, {"www-authenticate": "Bearer"})


class _Body:
    """A request's body as it arrives: how large it may be, how slow, and whether there is room for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._began = self.now
        self.size = 0

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def deadline(self) -> float:
        """When the next bytes must be there."""
        seconds = self._settings.receive_seconds
        return min(self.now, self._began + self.size / self._settings.receive_rate) + seconds

    def check(self, headers: Headers, held: int) -> None:
        """Refuses by what the headers say, before anything is read, with `held` bytes of all bodies here."""
        if headers.get("content-type", "").startswith("application/vnd.bentoml+pickle"):
            # BentoML itself would refuse it, in another form.
            raise Refusal(415, "unsupported_type", "Pickles are not taken; send an image file.")
        length = headers.get("content-length", "")
        declared = int(length) if length.isdecimal() else 0
        self._check_size(declared)
        if declared:
            self._check_room(held + declared)

    def add(self, size: int, held: int) -> None:
        """Counts what has arrived; raises Refusal where it is too much."""
        self.size += size
        self._check_size(self.size)
        self._check_room(held)

    def too_slow(self) -> Refusal:
        settings = self._settings
        message = (
            f"Only {self.size} bytes of the request had arrived after {self.now - self._began:.0f} seconds; at least "
            f"{settings.receive_rate} a second are expected, and none may be {settings.receive_seconds:g} seconds late."
        )
        return Refusal(408, "too_slow", message, {"connection": "close"})

    def _check_size(self, size: int) -> None:
        if size > (limit := self._settings.max_body_bytes):
            message = f"The request has {size} bytes or more; at most {limit} are accepted."
            raise Refusal(413, "too_large", message)

    def _check_room(self, held: int) -> None:
        if held > (limit := self._settings.max_held_bytes):
            message = f"Requests of {limit} bytes together are being worked on; with this one there would be more."
            raise Refusal(429, "busy", f"{message} Try later.", {"retry-after": "1"})
