"""Resize and Normalize as the first layers of every model. There is no other copy."""

from collections.abc import Sequence

import torch
from torch import SymInt, Tensor, nn
from torch.nn import functional as F


class Preprocessing(nn.Module):
    """Turns decoded pictures into what a backbone reads.

    Of whole square pictures it is `albumentations.Resize` (no antialiasing) followed by `albumentations.Normalize`.

    Args:
        image_size: height and width that the backbone sees, in pixels.
        mean, std: per RGB channel, for pictures scaled to [0, 1].
        fit: what comes first for others: `crop` their middle, `pad` them with the mean, or `squash` them.
        interpolation: `bilinear`, or `bicubic` (with a = -0.75, as OpenCV's).
        crop_share: the share of height and width that is looked at, in the middle.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        fit: str = "crop",
        interpolation: str = "bilinear",
        crop_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.training_size: int | None = None  # where it is another one in training
        self.fit = fit
        self.interpolation = interpolation
        self.crop_share = crop_share
        # (x / 255 - mean) / std as one multiply and one add.
        std_255 = 255 * torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / std_255, persistent=False)
        self.register_buffer("shift", -255 * torch.tensor(mean).view(1, 3, 1, 1) / std_255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3), RGB -> float32 (N, 3, image_size, image_size), normalised."""
        height, width = images.shape[1], images.shape[2]
        if self.crop_share < 1 and self.fit != "pad":
            images = _middle(images, self._share(height), self._share(width))
            height, width = images.shape[1], images.shape[2]
        if self.fit == "crop":
            side = torch.sym_min(height, width)
            images = _middle(images, side, side)
        pixels = images.permute(0, 3, 1, 2).float()
        if self.fit == "pad":
            side = torch.sym_max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            edges = (left, side - width - left, top, side - height - top)
            pixels = F.pad(pixels * self.scale + self.shift, edges)  # type: ignore[arg-type]
            if self.crop_share < 1:  # of the square, as in training
                share = self._share(side)
                pixels = _middle(pixels.permute(0, 2, 3, 1), share, share).permute(0, 3, 1, 2)
            return self._resize(pixels)
        return self._resize(pixels) * self.scale + self.shift

    def _share(self, length: int | SymInt) -> int | SymInt:
        # In whole numbers, which the exporter can follow.
        return torch.sym_max(1, (length * round(1000 * self.crop_share) + 500) // 1000)

    def _resize(self, pixels: Tensor) -> Tensor:
        side = self.training_size if self.training and self.training_size else self.image_size
        return F.interpolate(pixels, size=(side, side), mode=self.interpolation, align_corners=False, antialias=False)


def _middle(images: Tensor, height: int | SymInt, width: int | SymInt) -> Tensor:
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]
