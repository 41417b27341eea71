"""Pictures out of a request, in each of the ways in which they may be sent."""

import asyncio
import base64
import binascii

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from serving.model.pictures.decoding import FORMATS
from serving.online.errors import Refusal
from serving.online.schemas import PictureJson

# By their registered names.
IMAGE_TYPES = tuple(format.media_types[0] for format in FORMATS)
ACCEPTED_TYPES = {name for format in FORMATS for name in format.media_types}

FORM, JSON = "multipart/form-data", "application/json"


async def read_picture(request: Request) -> bytes:
    """The image file of a request: the form field `image`, the body itself, or base64 in JSON. Raises Refusal."""
    kind = _content_type(request)
    if kind in ACCEPTED_TYPES:
        return await request.body()
    if kind == JSON:
        return await asyncio.to_thread(_from_json, await request.body())
    if kind == FORM:
        pictures = await _from_form(request, "image")
        if len(pictures) > 1:
            raise Refusal(422, "invalid", f"There are {len(pictures)} pictures; POST /classify_batch takes several.")
        return pictures[0]
    raise _unsupported(kind, f"{FORM}, {JSON}, {', '.join(IMAGE_TYPES)}")


async def read_pictures(request: Request, max_pictures: int) -> list[bytes]:
    """The image files of the form fields `images`, in order. Raises Refusal."""
    kind = _content_type(request)
    if kind != FORM:
        raise _unsupported(kind, FORM)
    pictures = await _from_form(request, "images")
    if len(pictures) > max_pictures:
        raise Refusal(
            413, "too_many_pictures", f"The request has {len(pictures)} pictures; at most {max_pictures} are accepted."
        )
    return pictures


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(kind: str, accepted: str) -> Refusal:
    return Refusal(415, "unsupported_type", f"The content type {kind or '(none)'} is not supported; send {accepted}.")


async def _from_form(request: Request, field: str) -> list[bytes]:
    # The size of the body limits the number of files; more than are taken get an answer that says so.
    async with request.form(max_files=float("inf")) as form:
        files = form.getlist(field)
        if not files or not all(isinstance(file, UploadFile) for file in files):
            fields = ", ".join(dict.fromkeys(form)) or "none"
            message = f"Send the picture as a file in the form field {field}; the form's fields are: {fields}."
            raise Refusal(422, "invalid", message)
        return [await file.read() for file in files if isinstance(file, UploadFile)]


def _from_json(body: bytes) -> bytes:
    try:
        return base64.b64decode(PictureJson.model_validate_json(body).image, validate=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
    except (binascii.Error, ValueError) as error:
        reason = str(error)
    raise Refusal(422, "invalid", f'{reason}. Send {{"image": "..."}} with an image file in base64.')
