"""The service as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from serving.online.batcher import Batcher
from serving.online.champion import Champion
from serving.online.errors import add_handlers
from serving.online.gate import Gate
from serving.online.routes import about, classify
from serving.online.schemas import error_answers
from serving.settings import Settings

# BentoML answers these by itself.
HEALTH = ("/livez", "/readyz", "/healthz")


def create_app(settings: Settings) -> FastAPI:
    """The routes; `app.state.champion` and `app.state.batcher` answer while its lifespan lasts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.champion = Champion(settings)
        app.state.batcher = Batcher(settings)
        yield
        await app.state.champion.close()
        await app.state.batcher.close()

    app = FastAPI(
        title="Image classifier",
        version="1",
        openapi_url="/docs.json",
        docs_url=None,
        redoc_url=None,
        responses=error_answers(401, 503),
        # For the OpenAPI document; the gate asks for the token, on every route.
        dependencies=[Security(HTTPBearer(auto_error=False))] if settings.tokens else [],
        lifespan=lifespan,
    )
    add_handlers(app)
    classify.add_routes(app, settings)
    about.add_routes(app)
    return app


def middlewares(app: FastAPI, settings: Settings) -> list[tuple[type[Any], dict[str, Any]]]:
    """What stands before the app and before BentoML's own routes too, each with its arguments; the outermost last."""
    paths = [route.path for route in app.routes if hasattr(route, "path")]
    gate = (Gate, {"settings": settings, "routes": [*paths, *HEALTH]})
    if not settings.cors_origins:
        return [gate]
    cors = {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["authorization", "content-type", "x-request-id"],
        "expose_headers": ["x-request-id", "retry-after"],
    }
    return [(CORSMiddleware, cors), gate]
