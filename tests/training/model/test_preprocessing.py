import albumentations as A
import numpy as np
import pytest
import torch

from training.model.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("shape", [(32, 32), (300, 200), (64, 500), (1, 1)])
def test_it_is_albumentations_resize_and_normalize(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    # On float pixels, as OpenCV rounds what it makes of uint8.
    resized = A.Resize(96, 96)(image=image.astype(np.float32))["image"]
    expected = A.Normalize(MEAN, STD, max_pixel_value=255)(image=resized)["image"]
    actual = Preprocessing(96, MEAN, STD)(torch.from_numpy(image)[None])
    assert actual.shape == (1, 3, 96, 96)
    np.testing.assert_allclose(actual[0].permute(1, 2, 0).numpy(), expected, atol=1e-3)
