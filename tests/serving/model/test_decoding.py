"""An image file's bytes become pixels in one way, or a reason why not."""

import numpy as np
import pytest
from PIL import Image

from serving.model.errors import PictureError
from serving.model.pictures.decoding import decode
from tests.helpers.pictures import encoded

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_a_lossless_format_gives_its_pixels(form: str) -> None:
    pixels = decode(encoded(PICTURE, form, **({"lossless": True} if form == "WEBP" else {})))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(PICTURE))


@pytest.mark.parametrize("form", ["JPEG", "GIF"])
def test_a_lossy_format_gives_nearly_its_pixels(form: str) -> None:
    smooth = Image.linear_gradient("L").resize((30, 20)).convert("RGB")
    assert np.abs(decode(encoded(smooth, form)).astype(int) - np.asarray(smooth)).mean() < 5


@pytest.mark.parametrize(("mode", "form"), [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG")])
def test_every_mode_becomes_rgb(mode: str, form: str) -> None:
    image = PICTURE.convert(mode)
    content = encoded(image, form)
    assert decode(content).shape == (20, 30, 3)
    if form == "PNG":
        np.testing.assert_array_equal(decode(content), np.asarray(image.convert("RGB")))


def test_sixteen_bits_of_grey_become_eight() -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    pixels = decode(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(content)[0, 0], [255, 0, 0])


def test_a_turned_picture_is_upright() -> None:
    exif = PICTURE.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    turned = decode(encoded(PICTURE, "PNG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(PICTURE), -1))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "not_a_picture"),
        (b"hello", "not_a_picture"),
        (encoded(PICTURE, "TIFF"), "not_a_picture"),
        (encoded(PICTURE, "JPEG")[:300], "broken_picture"),
        (encoded(PICTURE, "PNG")[:100], "broken_picture"),
        (encoded(Image.new("L", (200, 200)), "PNG"), "too_many_pixels"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "too_many_pixels"),
    ],
)
def test_what_is_no_picture_has_a_reason(content: bytes, code: str) -> None:
    with pytest.raises(PictureError) as problem:
        decode(content, 10_000)
    assert problem.value.code == code


def test_running_out_of_memory_is_not_a_broken_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(MemoryError):
        decode(encoded(PICTURE, "PNG"))
