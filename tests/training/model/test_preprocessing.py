"""One way to make a square of a picture, in the graph and in augmentation."""

import albumentations as A
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from training.config import compose
from training.data.augmentation import build_transform
from training.model.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FITS = ("crop", "squash", "pad")


def preprocessed(
    image: np.ndarray, size: int, fit: str, interpolation: str = "bilinear", crop_share: float = 1.0
) -> np.ndarray:
    pixels = Preprocessing(size, MEAN, STD, fit, interpolation, crop_share)(torch.from_numpy(image)[None])
    assert pixels.shape == (1, 3, size, size)
    return pixels[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(32, 32), (1, 1), (200, 200)])
def test_of_squares_it_is_albumentations_resize_and_normalize(shape: tuple[int, int], fit: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    # On float pixels, as OpenCV rounds what it makes of uint8.
    resized = A.Resize(96, 96)(image=image.astype(np.float32))["image"]
    expected = A.Normalize(MEAN, STD, max_pixel_value=255)(image=resized)["image"]
    np.testing.assert_allclose(preprocessed(image, 96, fit), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(300, 200), (64, 501), (33, 32)])
def test_other_pictures_are_cropped_squashed_or_padded(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    side, longer = min(shape), max(shape)
    squares = {
        "crop": A.CenterCrop(side, side),
        "squash": A.NoOp(),
        "pad": A.PadIfNeeded(longer, longer, position="center", fill=[255 * value for value in MEAN]),
    }
    for fit, square in squares.items():
        steps = [square, A.Resize(96, 96), A.Normalize(MEAN, STD, max_pixel_value=255)]
        expected = A.Compose(steps)(image=image.astype(np.float32))["image"]
        np.testing.assert_allclose(preprocessed(image, 96, fit), expected, atol=0.02, err_msg=fit)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", FITS)
def test_a_photograph_is_trained_on_as_it_is_served(fit: str, interpolation: str) -> None:
    """Without anything random, augmentation gives the pixels that the graph makes of the same 3:2 photograph."""
    photograph = np.ascontiguousarray(load_sample_image("flower.jpg")[:420, :630])
    never = [f"transforms.steps.{step}.p=0" for step in ("horizontal_flip", "rotate", "coarse_dropout")]
    without = ["~transforms.steps.pad", "~transforms.steps.crop"]
    model = ["model=resnet18", f"model.fit={fit}", f"model.interpolation={interpolation}"]
    settings = compose(["data=digits", "transforms=reference", *model, *never, *without])
    transform = build_transform(settings.transforms, None, 96)
    trained = transform(image=photograph)["image"].permute(1, 2, 0).numpy().astype(np.float32) / 255
    served = np.clip(preprocessed(photograph, 96, fit, interpolation) * STD + MEAN, 0, 1)
    # OpenCV rounds to whole levels of 255, and calculates with 11 bits.
    np.testing.assert_allclose(trained, served, atol=1.5 / 255)


@pytest.mark.parametrize("shape", [(32, 32), (1, 1), (300, 200), (64, 501)])
def test_a_share_of_the_middle_is_looked_at(shape: tuple[int, int]) -> None:
    """As torchvision's Resize to 110 pixels and CenterCrop to 96 do, whose share is 96 / 110."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    side = max(1, round(min(shape) * 0.873))
    expected = A.Compose([A.CenterCrop(side, side), A.Resize(96, 96), A.Normalize(MEAN, STD, max_pixel_value=255)])
    cropped = expected(image=image.astype(np.float32))["image"]
    np.testing.assert_allclose(preprocessed(image, 96, "crop", crop_share=0.873), cropped, atol=0.02)


@pytest.mark.parametrize("fit", FITS)
def test_with_a_share_of_the_middle_the_model_is_trained_on_what_it_is_served(fit: str) -> None:
    settings = compose(["model=resnet18", "model.image_size=96", "model.crop_share=0.75", f"model.fit={fit}"])
    assert settings.model.picture_size == 128
    assert settings.model.decoding.shorter_side == 256
    square = build_transform(settings.transforms, None, settings.model.picture_size).transforms[0]
    photograph = np.ascontiguousarray(load_sample_image("flower.jpg")[:384, :576])  # a whole multiple of both sizes
    trained = preprocessed(square(image=photograph)["image"], 96, fit, crop_share=0.75)
    served = preprocessed(photograph, 96, fit, crop_share=0.75)
    assert np.abs(trained - served).mean() < 0.01, "the middle is cropped once"
