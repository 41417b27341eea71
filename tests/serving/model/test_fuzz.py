"""Image files that were damaged in ten thousand ways: a picture or a reason, never a crash."""

import contextlib
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from serving.model.errors import PictureError
from serving.model.pictures.decoding import FORMATS, decode
from tests.helpers.pictures import encoded

MAX_PIXELS = 1_000_000


def whole_files() -> list[bytes]:
    """A picture in every format and mode that it can have."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    files = []
    for kind in FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"):
            converted = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
            with contextlib.suppress(OSError, ValueError, TypeError):  # a format that does not know the mode
                files.append(encoded(converted, kind.name, **({"sizes": [(40, 24)]} if kind.name == "ICO" else {})))
    return files


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(("replace", "insert", "cut", "truncate")))
        some = draw(st.binary(min_size=1, max_size=8))
        if kind == "replace":
            content[position : position + len(some)] = some
        elif kind == "insert":
            content[position:position] = some
        elif kind == "cut":
            del content[position : position + draw(st.integers(1, 64))]
        else:
            del content[position:]
    return bytes(content)


def picture_or_reason(content: bytes) -> None:
    problem = None
    try:
        pixels = decode(content, max_pixels=MAX_PIXELS)
    except PictureError as error:
        problem = error
    if problem:
        assert problem.code in ("not_a_picture", "broken_picture", "too_many_pixels")
        assert problem.message
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


def test_every_whole_file_is_taken() -> None:
    files = whole_files()
    assert len(files) > 20
    for content in files:
        assert decode(content, max_pixels=MAX_PIXELS).shape == (24, 40, 3)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(damaged(whole_files()))
def test_a_damaged_file_is_a_picture_or_has_a_reason(content: bytes) -> None:
    picture_or_reason(content)


@pytest.mark.slow
def test_a_damaged_photograph_is_a_picture_or_has_a_reason(cifar10_images: str) -> None:
    if not Path(cifar10_images).is_file():
        pytest.skip("CIFAR10_IMAGES is not an archive")
    with zipfile.ZipFile(cifar10_images) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")][::997]
        files = [archive.read(name) for name in names]

    @settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(damaged(files))
    def check(content: bytes) -> None:
        picture_or_reason(content)

    check()
