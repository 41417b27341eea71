"""Image files of every format, and what is left of them after damage of every kind."""

import contextlib

import hypothesis.strategies as st
import numpy as np
from PIL import Image

from serving.model.pictures.decoding import FORMATS
from tests.helpers.pictures import encoded


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
