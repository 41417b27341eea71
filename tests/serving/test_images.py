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


@pytest.mark.parametrize(
    ("mode", "form"), [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")]
)
def test_every_mode_becomes_what_training_sees(mode: str, form: str) -> None:
    content = encoded(PICTURE.convert(mode), form)
    np.testing.assert_array_equal(decode(content, 10_000), data.decode(content))


def test_sixteen_bits_of_grey_become_eight() -> None:
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    pixels = decode(encoded(Image.fromarray(grey), "PNG"), 10_000)
    expected = np.rint(grey / 257)
    assert np.abs(pixels - expected[..., None]).max() <= 1
    assert pixels.min() == 0
    assert pixels.max() >= 254


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(content, 10_000)[0, 0], [255, 0, 0])


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
        (encoded(PICTURE, "TIFF"), 400, "not_a_picture"),
        (encoded(PICTURE, "JPEG")[:300], 400, "broken_picture"),
        (encoded(PICTURE, "PNG")[:100], 400, "broken_picture"),
        (encoded(Image.new("L", (200, 200)), "PNG"), 413, "too_many_pixels"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), 413, "too_many_pixels"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, status: int, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        decode(content, 10_000)
    assert (refusal.value.status, refusal.value.code) == (status, code)
