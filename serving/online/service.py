"""The application as a BentoML service: bentoml serve serving.online.service:Classifier"""

from contextlib import AsyncExitStack
from typing import Any

import bentoml

from serving.online.app import create_app, middlewares
from serving.settings import load_settings

settings = load_settings()
app = create_app(settings)


# Handed over as a function, the app gets every path that is not BentoML's own, and so answers what is not there.
@bentoml.asgi_app(app.__call__)
@bentoml.service(
    name="classifier",
    metrics={"enabled": False},  # it keeps a series for every path that anybody asks for; online/metrics.py has ours
    # Neither goes anywhere by default, and both cost each request time; the gate counts and names every request.
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    traffic={"timeout": settings.max_seconds + 5},  # the gate's own limit comes first, with an answer of our form
)
class Classifier:
    """Answers with the registry's champion."""

    def __init__(self) -> None:
        self._running = AsyncExitStack()

    @bentoml.on_startup
    async def start(self) -> None:
        # BentoML starts the lifespan of an app that it is given as such, but not of a function.
        await self._running.enter_async_context(app.router.lifespan_context(app))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self._running.aclose()

    async def __is_ready__(self) -> bool:
        return app.state.champion.predictor is not None  # raises a refusal until there is one


service: Any = Classifier  # bentoml.service's annotations hide what it returns
for middleware, arguments in middlewares(app, settings):
    service.add_asgi_middleware(middleware, **arguments)
