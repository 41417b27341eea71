"""GET /docs.json: the OpenAPI document of all routes."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.online import schemas
from serving.online.routes.uploads import FORM, IMAGE_TYPES, JSON
from serving.settings import Settings

REFERENCE = "#/components/schemas/{model}"
FILE = {"type": "string", "format": "binary"}
TOP_K = {"type": "integer", "minimum": 1, "description": "How many of the likeliest classes to answer; all by default."}
MODELS = (schemas.PictureJson, schemas.Classification, schemas.Classifications, schemas.ModelInfo, schemas.Error)


def openapi(settings: Settings, descriptions: dict[str, str]) -> dict[str, Any]:
    """The document; `descriptions` say by path what a route does."""
    images = {"type": "array", "items": FILE, "maxItems": settings.max_pictures}
    one = {
        **_form("image", FILE),
        **{kind: {"schema": FILE} for kind in IMAGE_TYPES},
        JSON: {"schema": _reference(schemas.PictureJson)},
    }
    refusals = (400, 408, 413, 415, 422, 429)
    paths = {
        "/classify": {"post": _operation(schemas.Classification, *refusals, takes=one)},
        "/classify_batch": {"post": _operation(schemas.Classifications, *refusals, takes=_form("images", images))},
        "/model": {"get": _operation(schemas.ModelInfo)},
        "/metrics": {"get": _operation(None)},
    }
    for path, item in paths.items():
        for operation in item.values():
            operation |= {"operationId": path[1:], "description": descriptions[path]}
    _, definitions = models_json_schema([(model, "validation") for model in MODELS], ref_template=REFERENCE)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Image classifier", "version": "1"},
        "servers": [{"url": "."}],  # wherever this document was found, also behind a prefix
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }
    if settings.tokens:
        document["components"]["securitySchemes"] = {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"HTTPBearer": []}]
    return document


def _operation(answer: type[BaseModel] | None, *refusals: int, takes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A route whose answer is JSON, or else text."""
    content = {JSON: {"schema": _reference(answer)}} if answer else {"text/plain": {"schema": {"type": "string"}}}
    error = {JSON: {"schema": _reference(schemas.Error)}}
    answers = {
        "200": {"description": HTTPStatus.OK.phrase, "content": content},
        **{
            str(status): {"description": HTTPStatus(status).phrase, "content": error}
            for status in (*refusals, 401, 503)
        },
    }
    if takes is None:
        return {"responses": answers}
    top_k = {"name": "top_k", "in": "query", "schema": TOP_K}
    return {"parameters": [top_k], "requestBody": {"required": True, "content": takes}, "responses": answers}


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    properties = {field: schema, "top_k": TOP_K}
    return {FORM: {"schema": {"type": "object", "required": [field], "properties": properties}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}
