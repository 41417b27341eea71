"""Resize and Normalize as the first layers of every model. There is no other copy."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INTERPOLATION = "bilinear"


class Preprocessing(nn.Module):
    """Turns decoded pictures into what a backbone reads.

    Of square pictures it is `albumentations.Resize` (bilinear, no antialiasing) followed by `albumentations.Normalize`.

    Args:
        image_size: height and width that the backbone sees, in pixels.
        mean, std: per RGB channel, for pictures scaled to [0, 1].
        fit: what comes first for others: `crop` their middle, `pad` them with the mean, or `squash` them.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float], fit: str) -> None:
        super().__init__()
        self.image_size = image_size
        self.fit = fit
        # (x / 255 - mean) / std as one multiply and one add.
        std_255 = 255 * torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / std_255, persistent=False)
        self.register_buffer("shift", -255 * torch.tensor(mean).view(1, 3, 1, 1) / std_255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3), RGB -> float32 (N, 3, image_size, image_size), normalised."""
        height, width = images.shape[1], images.shape[2]
        if self.fit == "crop":
            side = torch.sym_min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            images = images[:, top : top + side, left : left + side]
        size = (self.image_size, self.image_size)
        pixels = images.permute(0, 3, 1, 2).float()
        if self.fit == "pad":
            side = torch.sym_max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            edges = (left, side - width - left, top, side - height - top)
            pixels = F.pad(pixels * self.scale + self.shift, edges)  # type: ignore[arg-type]
            return F.interpolate(pixels, size=size, mode=INTERPOLATION, align_corners=False, antialias=False)
        pixels = F.interpolate(pixels, size=size, mode=INTERPOLATION, align_corners=False, antialias=False)
        return pixels * self.scale + self.shift
