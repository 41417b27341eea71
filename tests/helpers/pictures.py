"""Pictures that tests make."""

import io
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image


def png(height: int = 32, width: int = 32, seed: int = 0) -> bytes:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def photograph(height: int, width: int, form: str = "PNG", seed: int = 0, **options: object) -> bytes:
    """Many pixels in a small file: soft noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return encoded(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), form, **options)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """An image file's bytes; `form` and `options` are Pillow's."""
    buffer = io.BytesIO()
    if form == "HEIF":  # which the program itself can only read
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, form, **options)
    return buffer.getvalue()


def write_image_folder(root: Path, per_class: int = 6) -> Path:
    """Pictures of several sizes and modes: train/{red,green}/ and test/{red,green}/."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for channel, label in enumerate(("red", "green")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = random.integers(0, 60, (20 + index, 30, 3), np.uint8)
                pixels[..., channel] += 180
                image = Image.fromarray(pixels)
                path = folder / f"{index}.{'jpg' if index % 3 else 'png'}"
                (image if index % 3 else image.convert("P")).save(path)
    return root
