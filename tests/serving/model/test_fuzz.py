"""Image files that were damaged in ten thousand ways: a picture or a reason, never a crash.

The ways are the same each time, so that chance stops nobody's change; without `derandomize` they are others.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from serving.model.errors import PictureError
from serving.model.pictures.decoding import decode
from tests.helpers.damage import damaged, whole_files

MAX_PIXELS = 1_000_000


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
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
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

    @settings(
        max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    @given(damaged(files))
    def check(content: bytes) -> None:
        picture_or_reason(content)

    check()
