"""GET /model, /metrics and /ui: what answers, how it fares, and its page."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from serving.model import STYLESHEET
from serving.online import metrics
from serving.online.schemas import ModelInfo, ModelName


async def model(request: Request) -> Response:
    """Describes the model that answers."""
    predictor = request.app.state.champion.predictor
    info = ModelInfo(
        **dict(ModelName.of(predictor)),
        classes=predictor.classes,
        metrics={f"test_{name}": value for name, value in predictor.test.items()},
        measured=predictor.metadata.measured,
        metadata=predictor.metadata.properties(),
        loaded_at=predictor.loaded_at,
        runtime=predictor.runtime,
        providers=predictor.providers,
        lacks=predictor.lacks,
    )
    return Response(info.model_dump_json(), media_type="application/json")


async def prometheus(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


async def to_page(request: Request) -> Response:
    # Relative: behind a proxy neither the host, nor the scheme, nor a prefix of the path need to be known.
    return RedirectResponse("ui/")


async def style(request: Request) -> Response:
    return FileResponse(STYLESHEET)


ROUTES: tuple[BaseRoute, ...] = (
    Route("/model", model),
    Route("/metrics", prometheus),
    Route("/", to_page),
    Route("/ui", to_page),
    Route("/ui/style.css", style),
    Mount("/ui", StaticFiles(directory=Path(__file__).parents[1] / "web", html=True)),
)
