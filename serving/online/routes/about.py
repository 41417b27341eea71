"""GET /model, /metrics and /ui: what answers, how it fares, and its page."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from serving.model import STYLESHEET
from serving.online import metrics
from serving.online.schemas import ModelInfo, ModelName


def add_routes(app: FastAPI) -> None:
    @app.get("/model")
    async def model(request: Request) -> ModelInfo:
        """Describes the model that answers."""
        predictor = request.app.state.champion.predictor
        return ModelInfo(
            **dict(ModelName.of(predictor)),
            classes=predictor.classes,
            metrics={f"test_{name}": value for name, value in predictor.metadata.test.items()},
            metadata=predictor.metadata.properties(),
            loaded_at=predictor.loaded_at,
            providers=predictor.providers,
        )

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """All metrics in Prometheus' text format."""
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("ui/")

    @app.get("/ui/style.css", include_in_schema=False)
    async def style() -> FileResponse:
        return FileResponse(STYLESHEET)

    app.mount("/ui", StaticFiles(directory=Path(__file__).parents[1] / "web", html=True))
