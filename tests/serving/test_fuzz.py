"""Image files that were damaged in ten thousand ways: a picture or a refusal, never a crash."""

import io
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from serving.errors import Refusal
from serving.images import FORMATS, decode

MAX_PIXELS = 1_000_000


def whole_files() -> list[bytes]:
    """A picture in every format and mode that it can have."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    files = []
    for kind in FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"):
            buffer = io.BytesIO()
            try:
                (image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(buffer, kind)
            except (OSError, ValueError):  # a format that does not know the mode
                continue
            files.append(buffer.getvalue())
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


def picture_or_refusal(content: bytes) -> None:
    answer: np.ndarray | Refusal
    try:
        answer = decode(content, MAX_PIXELS)
    except Refusal as refusal:
        answer = refusal
    if isinstance(answer, Refusal):
        assert answer.status in (400, 413)
        assert answer.message
    else:
        assert answer.dtype == np.uint8
        assert answer.shape[2:] == (3,)
        assert answer.shape[0] * answer.shape[1] <= MAX_PIXELS


def test_every_whole_file_is_taken() -> None:
    files = whole_files()
    assert len(files) > 20
    for content in files:
        assert decode(content, MAX_PIXELS).shape == (24, 40, 3)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(damaged(whole_files()))
def test_a_damaged_file_is_a_picture_or_a_refusal(content: bytes) -> None:
    picture_or_refusal(content)


@pytest.mark.slow
def test_a_damaged_photograph_is_a_picture_or_a_refusal(cifar10_images: str) -> None:
    if not Path(cifar10_images).is_file():
        pytest.skip("CIFAR10_IMAGES is not an archive")
    with zipfile.ZipFile(cifar10_images) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")][::997]
        files = [archive.read(name) for name in names]

    @settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(damaged(files))
    def check(content: bytes) -> None:
        picture_or_refusal(content)

    check()
