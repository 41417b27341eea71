"""An image file's bytes become pixels in one way, or a reason why not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from serving.model.errors import PictureError
from serving.model.pictures.decoding import AS_SHOWN, FORMATS, Decoding, decode
from tests.helpers.pictures import encoded, photograph

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True}, "JPEG2000": {}, "ICO": {}}
LOSSY = ("JPEG", "MPO", "GIF", "AVIF", "HEIF")
FULL_SIZE = Decoding()
EARLIER = Decoding(as_shown=False)  # of the files of contract 0


@pytest.mark.parametrize("form", LOSSLESS)
def test_a_lossless_format_gives_its_pixels(form: str) -> None:
    options = {"sizes": [PICTURE.size], "bitmap_format": "bmp"} if form == "ICO" else LOSSLESS[form]
    pixels = decode(encoded(PICTURE, form, **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(PICTURE))


@pytest.mark.parametrize("form", LOSSY)
def test_a_lossy_format_gives_nearly_its_pixels(form: str) -> None:
    smooth = Image.linear_gradient("L").resize((30, 20)).convert("RGB")
    assert np.abs(decode(encoded(smooth, form)).astype(int) - np.asarray(smooth)).mean() < 5


def test_every_format_is_among_these() -> None:
    assert {format.name for format in FORMATS} == {*LOSSLESS, *LOSSY} - {"MPO"}


@pytest.mark.parametrize(("mode", "form"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("CMYK", "JPEG")])
def test_every_opaque_mode_becomes_rgb(mode: str, form: str) -> None:
    image = PICTURE.convert(mode)
    content = encoded(image, form)
    assert decode(content).shape == (20, 30, 3)
    if form != "JPEG":
        np.testing.assert_array_equal(decode(content), np.asarray(image.convert("RGB")))


def see_through(mode: str) -> Image.Image:
    """Red or black that is opaque on the left and transparent on the right."""
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))
    return image.convert(mode)


def two_colours(pixels: bytes) -> Image.Image:
    image = Image.frombytes("P", (4, 2), pixels)
    image.putpalette([255, 0, 0, 0, 0, 0])
    return image


def with_transparent_colour(image: Image.Image, colour: object) -> bytes:
    return encoded(image, "PNG", transparency=colour)


@pytest.mark.parametrize(
    "content",
    [
        encoded(see_through("RGBA"), "PNG"),
        encoded(see_through("LA"), "PNG"),
        encoded(see_through("RGBA"), "WEBP", lossless=True),
        encoded(see_through("RGBA"), "GIF"),
        encoded(see_through("RGBA"), "TIFF"),
        encoded(see_through("RGBA"), "AVIF", quality=100),
        encoded(see_through("RGBA"), "JPEG2000"),
        encoded(see_through("RGBA"), "ICO", sizes=[(4, 2)]),
        with_transparent_colour(see_through("RGBA").convert("RGB"), (0, 0, 0)),
        with_transparent_colour(see_through("RGBA").convert("L"), 0),
        with_transparent_colour(two_colours(bytes([0, 0, 1, 1] * 2)), bytes([255, 0])),
    ],
)
def test_what_is_transparent_is_white(content: bytes) -> None:
    pixels = decode(content)
    assert (pixels[:, 2:] >= 254).all()
    assert (pixels[:, :2] < 254).any(axis=2).all()
    assert not (decode(content, EARLIER)[:, 2:] >= 254).all()


def test_half_transparent_colours_are_mixed_with_white() -> None:
    pixels = decode(encoded(Image.new("RGBA", (4, 2), (255, 0, 0, 128)), "PNG"))
    np.testing.assert_allclose(pixels[0, 0], (255, 127, 127), atol=1)


def test_sixteen_bits_of_grey_become_eight() -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for form in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(grey), form))
        np.testing.assert_array_equal(pixels, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.parametrize("pixels", [np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)])
def test_thirty_two_bits_of_unknown_range_are_refused_with_words(pixels: np.ndarray) -> None:
    with pytest.raises(PictureError, match="32 bits a pixel"):
        decode(encoded(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(content)[0, 0], [255, 0, 0], atol=2)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_upright(orientation: int, form: str) -> None:
    """Orientation 6, for one, is of a camera that was held upright: the first row of the file is the right column."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.linear_gradient("L").resize((30, 20)).rotate(10, fillcolor=77).convert("RGB")
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    pixels = decode(encoded(smooth, form, exif=exif.tobytes() if form != "TIFF" else exif, **options)).astype(int)
    stored = np.asarray(smooth).astype(int)
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < (3 if form == "JPEG" else 0.01)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((32, 32), (32, 32)),
        ((64, 64), (64, 64)),
        ((65, 65), (33, 33)),
        ((300, 200), (75, 50)),
        ((64, 250), (64, 250)),
        ((64, 300), (32, 150)),
        ((4000, 64), (1000, 16)),
    ],
)
def test_a_large_picture_is_decoded_at_a_fraction_of_its_size(size: tuple[int, int], decoded: tuple[int, int]) -> None:
    """Its shorter side has at most 64 pixels, and all of it no more than four squares of that side."""
    for form in ("PNG", "JPEG"):
        height, width = decode(encoded(Image.new("L", size), form), Decoding(shorter_side=64)).shape[:2]
        if form == "PNG":
            assert (width, height) == decoded
        assert 32 <= min(width, height) <= 64 or size[0] == 4000
        assert width * height <= 4 * 64**2


def test_a_fraction_is_the_mean_of_what_it_stands_for() -> None:
    """One pixel in sixteen is white: a fraction of a quarter is a grey without stripes."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[::4, ::4] = 255
    for form in ("PNG", "JPEG", "TIFF"):
        content = encoded(Image.fromarray(pixels), form)
        reduced = decode(content, Decoding(shorter_side=64))
        np.testing.assert_allclose(reduced[2:-2, 2:-2], 16, atol=3)


def test_transparency_and_palettes_are_reduced_as_they_are_shown() -> None:
    """Hidden black does not darken what lies beside it, and the numbers of a palette have no mean."""
    image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 65, 128))
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), Decoding(shorter_side=32)), 255)
    stripes = Image.frombytes("P", (128, 128), bytes([0, 200] * 64 * 128))
    stripes.putpalette([255, 0, 0] * 200 + [0, 0, 255] * 56)
    np.testing.assert_allclose(decode(encoded(stripes, "PNG"), Decoding(shorter_side=32))[5, 5], (127, 0, 127), atol=1)


def test_colours_are_those_of_the_embedded_profile() -> None:
    """The same colour in two spaces is the same to the model, but not for a file of contract 0."""
    srgb = ImageCms.createProfile("sRGB")
    swapped = profile_with_swapped_channels()
    image = Image.new("RGB", (8, 8), (200, 30, 60))
    stored = ImageCms.profileToProfile(image, srgb, swapped)
    content = encoded(stored, "PNG", icc_profile=swapped.tobytes())
    np.testing.assert_allclose(decode(content)[0, 0].astype(int), (200, 30, 60), atol=3)
    assert abs(int(decode(content, EARLIER)[0, 0, 0]) - 200) > 20


def profile_with_swapped_channels() -> ImageCms.ImageCmsProfile:
    """sRGB's profile with the primaries of red and of blue exchanged."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", content[128:132])
    tags = {bytes(content[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    content[red : red + 4], content[blue : blue + 4] = b"bXYZ", b"rXYZ"
    text = b"s\0R\0G\0B"
    content = content.replace(text, b"x\0y\0z\0w")
    return ImageCms.ImageCmsProfile(io.BytesIO(bytes(content)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_broken_metadata_does_not_make_a_picture_broken() -> None:
    whole = encoded(PICTURE, "PNG")
    after_header = whole.index(b"IDAT") - 4
    for extra in (
        chunk(b"eXIf", b"no exif at all"),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile at all")),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    ):
        content = whole[:after_header] + extra + whole[after_header:]
        np.testing.assert_array_equal(decode(content), np.asarray(PICTURE))
    jpeg = encoded(PICTURE, "JPEG")
    content = jpeg[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff" + jpeg[2:]
    np.testing.assert_array_equal(decode(content), decode(jpeg))


@pytest.mark.parametrize("decoding", [FULL_SIZE, EARLIER, Decoding(shorter_side=16)])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "not_a_picture"),
        (b"hello", "not_a_picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_a_picture"),
        (encoded(PICTURE, "PCX"), "not_a_picture"),
        (encoded(PICTURE, "JPEG")[:300], "broken_picture"),
        (encoded(PICTURE, "JPEG")[:-40], "broken_picture"),
        (encoded(PICTURE, "PNG")[:100], "broken_picture"),
        (encoded(Image.new("L", (200, 200)), "PNG"), "too_many_pixels"),
        (encoded(Image.new("L", (200, 200)), "JPEG"), "too_many_pixels"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "too_many_pixels"),
        (encoded(Image.new("RGB", (200, 200)), "HEIF"), "too_many_pixels"),
    ],
)
def test_what_is_no_picture_has_a_reason(content: bytes, code: str, decoding: Decoding) -> None:
    with pytest.raises(PictureError) as problem:
        decode(content, decoding, max_pixels=10_000)
    assert problem.value.code == code


def test_an_empty_file_says_so() -> None:
    with pytest.raises(PictureError, match="The file is empty"):
        decode(b"")


def test_running_out_of_memory_is_not_a_broken_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(MemoryError):
        decode(encoded(PICTURE, "PNG"), AS_SHOWN)


def test_an_icon_is_measured_before_it_is_decoded() -> None:
    """It may hold a PNG file of any size in a few kilobytes, and is decoded as soon as it is opened."""
    picture = photograph(12_000, 12_000)
    entry = bytes([0, 0, 0, 0, 1, 0, 32, 0]) + struct.pack("<II", len(picture), 22)
    with pytest.raises(PictureError, match="12000x12000 pixels; at most 1000000 ") as refused:
        decode(struct.pack("<HHH", 0, 1, 1) + entry + picture)
    assert refused.value.code == "too_many_pixels"
