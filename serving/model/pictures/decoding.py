"""The one way from an image file's bytes to pixels, for training, online and offline alike."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pi_heif
from PIL import IcoImagePlugin, Image, ImageCms, PngImagePlugin

from serving.model.errors import PictureError, is_out_of_memory
from serving.model.pictures.memory import LARGE


class Format(NamedTuple):
    """An image format that is taken, by its content. None of these starts another program."""

    name: str  # Pillow's
    media_types: tuple[str, ...]  # the registered one first, then others in use
    title: str  # for people


FORMATS = (
    Format("JPEG", ("image/jpeg", "image/jpg", "image/mpo"), "JPEG"),
    Format("PNG", ("image/png", "image/x-png", "image/apng"), "PNG"),
    Format("WEBP", ("image/webp",), "WebP"),
    Format("HEIF", ("image/heic", "image/heif"), "HEIC"),
    Format("AVIF", ("image/avif",), "AVIF"),
    Format("TIFF", ("image/tiff", "image/tif"), "TIFF"),
    Format("GIF", ("image/gif",), "GIF"),
    Format("BMP", ("image/bmp", "image/x-ms-bmp"), "BMP"),
    Format("JPEG2000", ("image/jp2", "image/j2k", "image/jpx"), "JPEG 2000"),
    Format("PPM", ("image/x-portable-anymap", "image/x-portable-pixmap", "image/x-portable-graymap"), "PPM"),
    Format("ICO", ("image/vnd.microsoft.icon", "image/x-icon"), "ICO"),
)
PILLOW_NAMES = tuple(format.name for format in FORMATS)
TITLES = ", ".join(format.title for format in FORMATS)
MAX_PIXELS = 50_000_000
ICON = b"\0\0\1\0"
BYTES_TO_DECODE = 20  # of a pixel: the most that a decoder was seen to need, WebP's

# Pillow refuses a picture for a larger text or colour profile in it; photo editors write such.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**26
# Pictures are bounded by `max_pixels`, before they are decoded.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all of Pillow's plugins, which it would load at the first file that is not of the five common formats
pi_heif.register_heif_opener(thumbnails=False)

SRGB = ImageCms.createProfile("sRGB")
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoding:
    """How the pictures of a model are decoded.

    `shorter_side`: a picture whose shorter side has more pixels is decoded at a whole fraction of its size (JPEG's own
    scaling first, then the mean of every block of pixels), as is one of more than four squares of that side; None: at
    full size. `as_shown`: transparency over white and colours in sRGB, as browsers show them; models of contract 0
    have what is hidden under transparency, and colours without their profile.
    """

    shorter_side: int | None = None
    as_shown: bool = True

    def fraction(self, size: tuple[int, int]) -> int:
        """The divisor of width and height."""
        if self.shorter_side is None:
            return 1
        width, height = size
        by_area = (width * height / (4 * self.shorter_side**2)) ** 0.5
        return max(1, -(-min(size) // self.shorter_side), int(-(-by_area // 1)))


AS_SHOWN = Decoding()


@contextmanager
def opened(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image file of which no more than the header has been read, to be decoded inside the block.

    Raises, also for what goes wrong in the block:
        PictureError: `not_a_picture`, `broken_picture`, or `too_many_pixels` where there are more than `max_pixels`.
        MemoryError: it is too large for the memory that is left.
    """
    if not content:
        raise PictureError("not_a_picture", "The file is empty.")
    pixels = max_pixels
    try:
        if content.startswith(ICON):
            _check_icon(content)
        with Image.open(io.BytesIO(content), formats=PILLOW_NAMES) as image:
            pixels = image.width * image.height
            _check_size(image, max_pixels)
            yield image
    except PictureError:
        raise
    except Image.UnidentifiedImageError as error:
        message = f"The {len(content)} bytes are not a picture; supported: {TITLES}."
        raise PictureError("not_a_picture", message) from error
    except Exception as error:  # Pillow's decoders raise many kinds for a broken file
        # WebP, AVIF and JPEG 2000 take a picture for broken where memory ran out.
        if is_out_of_memory(error) or not _is_free(pixels * BYTES_TO_DECODE):
            raise MemoryError(*error.args) from error
        raise PictureError("broken_picture", f"The picture is broken: {error}.") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        message = f"The picture has {image.width}x{image.height} pixels; at most {max_pixels} are accepted."
        raise PictureError("too_many_pixels", message)


def _check_icon(content: bytes) -> None:
    """Icons are decoded as soon as they are opened, and may hold a PNG file of any size."""
    _check_size(IcoImagePlugin.IcoFile(io.BytesIO(content)).frame(0), LARGE)


def _is_free(size: int) -> bool:
    """Whether so many bytes of memory are to be had."""
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


def decode(content: bytes, decoding: Decoding = AS_SHOWN, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image file; raises as `opened` does."""
    with opened(content, max_pixels) as image:
        return pixels_of(image, decoding)


def pixels_of(image: Image.Image, decoding: Decoding) -> np.ndarray:
    """Decodes the first frame of an opened file, upright as its EXIF orientation says: uint8 (H, W, 3), RGB."""
    if (fraction := decoding.fraction(image.size)) > 1:
        image.draft(None, (image.width // fraction, image.height // fraction))
    pixels = _as_shown(image) if decoding.as_shown else _eight_bits(image)
    if (fraction := decoding.fraction(pixels.size)) > 1:
        pixels = pixels.reduce(fraction)
    pixels = _in_srgb(pixels, image) if decoding.as_shown else pixels.convert("RGB")
    turn = TURNS.get(_orientation(image))  # after decoding, in which some formats turn by themselves
    return np.asarray(pixels if turn is None else pixels.transpose(turn))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # what else is wrong with the metadata is nothing to the pixels
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits keep their upper 8, as Pillow does with colours; its convert() would clip grey ones instead."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        message = "The picture has 32 bits a pixel, whose range is not known; save it with 8 or 16 bits."
        raise PictureError("broken_picture", message)
    return image


def _as_shown(image: Image.Image) -> Image.Image:
    """Without transparency, in a mode of which blocks of pixels have a mean."""
    image = _eight_bits(image)
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), above).convert("RGB")
    return image.convert("RGB") if image.mode in ("P", "1", "PA", "HSV", "LAB") else image


def _in_srgb(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Colours by the profile that is embedded in `image`, where it is whole and of this kind of pixels."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" in ImageCms.getProfileDescription(embedded):
                return pixels.convert("RGB")
            return ImageCms.profileToProfile(pixels, embedded, SRGB, outputMode="RGB") or pixels.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return pixels.convert("RGB")
