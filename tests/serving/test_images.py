import io

import numpy as np
import pytest
from PIL import Image

from serving.errors import Refusal
from serving.images import decode
from training import data

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_every_format_becomes_what_training_sees(form: str) -> None:
    content = encoded(PICTURE, form)
    pixels = decode(content, 10_000)
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, data.decode(content))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_becomes_what_training_sees(mode: str) -> None:
    content = encoded(PICTURE.convert(mode), "PNG")
    np.testing.assert_array_equal(decode(content, 10_000), data.decode(content))


def test_a_turned_picture_is_upright() -> None:
    exif = PICTURE.getexif()
    exif[0x0112] = 6
    content = encoded(PICTURE, "JPEG", exif=exif)
    assert decode(content, 10_000).shape == (30, 20, 3)
    np.testing.assert_array_equal(decode(content, 10_000), data.decode(content))


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "not_a_picture"),
        (b"hello", 400, "not_a_picture"),
        (encoded(PICTURE, "JPEG")[:300], 400, "broken_picture"),
        (encoded(PICTURE, "PNG")[:100], 400, "broken_picture"),
        (encoded(Image.new("L", (200, 200)), "PNG"), 413, "too_many_pixels"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, status: int, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        decode(content, 10_000)
    assert (refusal.value.status, refusal.value.code) == (status, code)
