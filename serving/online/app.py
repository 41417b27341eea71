"""The application as a BentoML service."""

import functools
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.model.predictor import Predictor
from serving.online import schemas
from serving.online.batcher import Batcher
from serving.online.champion import Champion
from serving.online.errors import Refusal, answer_error
from serving.online.gate import Gate
from serving.online.routes import about
from serving.online.routes.classify import classify_one, classify_several
from serving.online.routes.document import openapi
from serving.settings import Settings

# BentoML answers these by itself.
BENTOML_PATHS = ("/livez", "/readyz", "/healthz", "/schema.json")


def create_service(settings: Settings, predictor: Predictor | None = None) -> Any:
    """The service, whose `apis` and ASGI application BentoML makes; `predictor`: the model, where it is loaded already.

    Everything but its API methods is answered by an application of our own that it mounts.
    """
    # BentoML answers POST to its API methods; with these every other method gets 405 and not 404.
    posts = [Route(path, _not_here, methods=["POST"]) for path in ("/classify", "/classify_batch")]
    pages = Starlette(
        routes=[*about.ROUTES, *posts, Route("/docs.json", lambda request: JSONResponse(document))],
        exception_handlers=dict.fromkeys((Refusal, HTTPException, Exception), answer_error),
    )
    pages.router.redirect_slashes = False  # its redirects name a host

    # Handed over as a function, the app gets every path that is not BentoML's own, and so answers what is not there.
    @bentoml.asgi_app(pages.__call__)
    @bentoml.service(
        name="classifier",
        metrics={"enabled": False},  # it keeps a series for every path that is asked for; online/metrics.py has ours
        logging={"access": {"enabled": False}},  # costs each request time; the gate counts and names every request
        tracing=_tracing(),
        # After the gate's limits, which answer in our form. It keeps a timer for each request until then.
        traffic={"timeout": min(settings.longest_seconds + 5, 300)},
    )
    class Classifier:
        """Answers with the registry's champion."""

        def __init__(self) -> None:
            self._running = AsyncExitStack()

        @bentoml.on_startup
        async def start(self) -> None:
            pages.state.batcher = batcher = Batcher(settings)
            pages.state.champion = champion = Champion(settings, predictor, lambda: batcher.last_answered)
            self._running.push_async_callback(batcher.close)
            self._running.push_async_callback(champion.close)

        @bentoml.on_shutdown
        async def stop(self) -> None:
            await self._running.aclose()

        async def __is_ready__(self) -> bool:
            return pages.state.champion.predictor is not None  # raises a refusal until there is one

        @bentoml.api(input_spec=schemas.OnePicture, output_spec=schemas.Classification)
        @_answers_errors
        async def classify(self, image: Path | Request, top_k: int | None = None) -> schemas.Classification:
            """Classifies one picture.

            curl -F image=@cat.png http://localhost:3000/classify
            curl --data-binary @cat.png -H 'Content-Type: image/png' http://localhost:3000/classify?top_k=3
            """
            return await classify_one(pages.state.champion.predictor, pages.state.batcher, image, top_k)

        @bentoml.api(input_spec=schemas.SeveralPictures, output_spec=schemas.Classifications)
        @_answers_errors
        async def classify_batch(
            self, images: list[Path] | Request, top_k: int | None = None
        ) -> schemas.Classifications:
            """Classifies several pictures; a broken one has an error in its place, and the others are answered.

            curl -F images=@cat.png -F images=@dog.png http://localhost:3000/classify_batch
            """
            state, most = pages.state, settings.max_pictures
            return await classify_several(state.champion.predictor, state.batcher, images, top_k, most)

    service: Any = Classifier  # bentoml.service's annotations hide what it returns
    descriptions = {api.route: api.doc for api in service.apis.values()}
    descriptions |= {route.path: route.endpoint.__doc__ for route in about.ROUTES if isinstance(route, Route)}
    document = openapi(settings, descriptions)
    paths = [*descriptions, *BENTOML_PATHS, "/docs.json"]
    for middleware, arguments in _middlewares(settings, paths):
        service.add_asgi_middleware(middleware, **arguments)
    return service


def create_application(settings: Settings, predictor: Predictor | None = None) -> Starlette:
    """The service's ASGI application, as BentoML makes it but for what costs each request time.

    Those are its own time limit, as the gate has better ones, and its tracing where no spans are wanted.
    """
    application: Starlette = create_service(settings, predictor).to_asgi()
    middlewares: list[Any] = application.user_middleware
    unused = [TimeoutMiddleware] if _spans_are_wanted() else [TimeoutMiddleware, OpenTelemetryMiddleware]
    application.user_middleware = [each for each in middlewares if each.cls not in unused]
    return application


async def _not_here(request: Request) -> Response:
    raise HTTPException(404)


def _answers_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """BentoML answers errors of an API method in a form of its own: where a request asked, it gets ours instead."""

    @functools.wraps(method)
    async def answered(self: Any, **given: Any) -> Any:
        try:
            return await method(self, **given)
        except Exception as error:
            for value in given.values():
                if isinstance(value, Request):
                    return await answer_error(value, error)
            raise

    return answered


def _tracing() -> dict[str, Any]:
    if not _spans_are_wanted():
        return {"excluded_urls": ".*"}
    return {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": {"protocol": "http"}}


def _spans_are_wanted() -> bool:
    """Whether OpenTelemetry's own variables say where to."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def _middlewares(settings: Settings, paths: list[str]) -> list[tuple[type[Any], dict[str, Any]]]:
    """What stands before BentoML's own routes too, each with its arguments; the outermost first."""
    gate = (Gate, {"settings": settings, "routes": paths})
    if not settings.cors_origins:
        return [gate]
    cors = {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["authorization", "content-type", "x-request-id"],
        "expose_headers": ["x-request-id", "retry-after"],
    }
    return [(CORSMiddleware, cors), gate]
