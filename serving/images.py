"""An image file's bytes -> uint8 array, or a clear refusal."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from serving.errors import Refusal

# Image files that are taken; training/data.py takes the same.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")


def decode(content: bytes, max_pixels: int) -> np.ndarray:
    """Decodes the first frame of an image file, upright as its EXIF orientation says.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        Refusal: 400 not a picture, or a broken one; 413 more than `max_pixels`.
    """
    with _opened(content, max_pixels) as image:
        return np.asarray(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits keeps its upper 8, as Pillow does with colours; its own convert() clips instead."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode == "I;16" else image


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Refusal(
                    413, "too_many_pixels", f"The picture has {width}x{height} pixels; at most {max_pixels} are taken."
                )
            yield image
    except Image.UnidentifiedImageError as error:
        message = f"The {len(content)} bytes are not a picture: {', '.join(FORMATS[:-1])} and {FORMATS[-1]} are taken."
        raise Refusal(400, "not_a_picture", message) from error
    except Image.DecompressionBombError as error:
        raise Refusal(413, "too_many_pixels", f"The picture has more than {max_pixels} pixels.") from error
    except Refusal:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for a broken file
        raise Refusal(400, "broken_picture", f"The picture is broken: {error}.") from error
