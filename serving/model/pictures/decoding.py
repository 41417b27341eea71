"""The one way from an image file's bytes to pixels, for training, online and offline alike."""

import io
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from serving.model.errors import PictureError


class Format(NamedTuple):
    name: str  # Pillow's
    media_types: tuple[str, ...]  # the registered one first, then others in use
    suffixes: tuple[str, ...]  # of file names, in lower case


FORMATS = (
    Format("BMP", ("image/bmp", "image/x-ms-bmp"), (".bmp",)),
    Format("GIF", ("image/gif",), (".gif",)),
    Format("JPEG", ("image/jpeg", "image/jpg"), (".jpeg", ".jpg")),
    Format("PNG", ("image/png", "image/x-png"), (".png",)),
    Format("WEBP", ("image/webp",), (".webp",)),
)
SUFFIXES = frozenset(suffix for format in FORMATS for suffix in format.suffixes)
MAX_PIXELS = 50_000_000


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes the first frame of an image file, upright as its EXIF orientation says: uint8 (H, W, 3), RGB.

    Raises:
        PictureError: `not_a_picture`, `broken_picture`, or `too_many_pixels` where there are more than `max_pixels`.
        MemoryError: it is too large for the memory that is left.
    """
    names = [format.name for format in FORMATS]
    try:
        with Image.open(io.BytesIO(content), formats=names) as image:
            width, height = image.size
            if width * height > max_pixels:
                message = f"The picture has {width}x{height} pixels; at most {max_pixels} are taken."
                raise PictureError("too_many_pixels", message)
            return np.asarray(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))
    except (PictureError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        message = f"The {len(content)} bytes are not a picture: {', '.join(names[:-1])} and {names[-1]} are taken."
        raise PictureError("not_a_picture", message) from error
    except Image.DecompressionBombError as error:
        raise PictureError("too_many_pixels", f"The picture has more than {max_pixels} pixels.") from error
    except Exception as error:  # Pillow's decoders raise many kinds for a broken file
        raise PictureError("broken_picture", f"The picture is broken: {error}.") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits keeps its upper 8, as Pillow does with colours; Pillow's convert() would clip it instead."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode == "I;16" else image
