"""Pictures out of a request, in each of the ways in which they may be sent."""

import asyncio
import base64
import re
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.model.pictures.decoding import FORMATS
from serving.online.errors import Refusal
from serving.online.schemas import PictureJson

# By their registered names.
IMAGE_TYPES = tuple(format.media_types[0] for format in FORMATS)
ACCEPTED_TYPES = {name for format in FORMATS for name in format.media_types}

FORM, JSON = "multipart/form-data", "application/json"
TOP_K = TypeAdapter(Annotated[int, Field(ge=1)] | None)
# Of a data URL, and in the alphabet that is safe in URLs.
DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
URL_SAFE = str.maketrans("-_", "+/", " \t\r\n")


class Upload(NamedTuple):
    """What a request has brought: image files, and how many of the likeliest classes are wanted; None: all."""

    pictures: list[bytes]
    top_k: int | None


async def read_picture(request: Request) -> Upload:
    """The image file of a request: the form field `image`, the body itself, or base64 in JSON. Raises Refusal."""
    kind = _content_type(request)
    if kind in ACCEPTED_TYPES:
        return Upload([await request.body()], _top_k(request))
    if kind == JSON:
        return await asyncio.to_thread(_from_json, request, await request.body())
    if kind == FORM:
        upload = await _from_form(request, "image")
        if len(upload.pictures) > 1:
            count = len(upload.pictures)
            raise Refusal(422, "invalid", f"There are {count} pictures; POST /classify_batch takes several.")
        return upload
    raise _unsupported(kind, f"{FORM}, {JSON}, {', '.join(IMAGE_TYPES)}")


async def read_pictures(request: Request, max_pictures: int) -> Upload:
    """The image files of the form fields `images`, in order. Raises Refusal."""
    kind = _content_type(request)
    if kind != FORM:
        raise _unsupported(kind, FORM)
    upload = await _from_form(request, "images")
    if (count := len(upload.pictures)) > max_pictures:
        message = f"The request has {count} pictures; at most {max_pictures} are accepted."
        raise Refusal(413, "too_many_pictures", message)
    return upload


def _content_type(request: Request) -> str:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        message = f"The content encoding {encoding} is not supported; send the picture as it is, without it."
        raise Refusal(415, "unsupported_encoding", message)
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(kind: str, accepted: str) -> Refusal:
    return Refusal(415, "unsupported_type", f"The content type {kind or '(none)'} is not supported; send {accepted}.")


def _top_k(request: Request, given: object = None) -> int | None:
    """Of the query, or else what the form or the JSON has given."""
    value = request.query_params.get("top_k", given)
    try:
        return TOP_K.validate_python(None if value in ("", "null") else value)
    except ValidationError as error:
        raise Refusal(422, "invalid", f"top_k={value}: {error.errors()[0]['msg']}.") from error


class _Parts(MultiPartParser):
    """Takes every part for a file, also one without a file name, and keeps it in memory: the gate bounds that."""

    spool_max_size = 0  # without a limit

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition or b""
        if b"filename" not in parse_options_header(disposition)[1]:
            self._current_part.content_disposition = disposition + b'; filename=""'
        super().on_headers_finished()


async def _from_form(request: Request, field: str) -> Upload:
    try:
        # The size of the body limits the number of files; more than are taken get an answer that says so.
        form = await _Parts(request.headers, request.stream(), max_files=float("inf")).parse()
    except (MultiPartException, ValueError) as error:  # ValueError: a charset that decodes nothing
        raise Refusal(400, "bad_request", f"The form is broken: {error}.") from error
    parts = [(name, part.file.read()) for name, part in form.multi_items() if isinstance(part, UploadFile)]
    pictures = [content for name, content in parts if name == field]
    if not pictures:
        fields = ", ".join(dict(parts)) or "none"
        message = f"Send the picture as a file in the form field {field}; the form's fields are: {fields}."
        raise Refusal(422, "invalid", message)
    return Upload(pictures, _top_k(request, dict(parts).get("top_k", b"").decode(errors="replace")))


def _from_json(request: Request, body: bytes) -> Upload:
    try:
        sent = PictureJson.model_validate_json(body)
        data_url = DATA_URL.match(sent.image)
        text = sent.image[data_url.end() if data_url else 0 :].translate(URL_SAFE).rstrip("=")
        return Upload([base64.b64decode(text + "=" * (-len(text) % 4), validate=True)], _top_k(request, sent.top_k))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
    except ValueError as error:
        reason = str(error)
    raise Refusal(422, "invalid", f'{reason}. Send {{"image": "..."}} with an image file in base64.')
