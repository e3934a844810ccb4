"""FixMatch's strong augmentation: random operations of random strength, then Cutout.

After FixMatch (arXiv 2001.07685, table 12) and the choice of ranges in USB's SoftMatch. Draws come
from torch's global generator, which the loader seeds per sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

GREY = 127  # what turns and cuts uncover

# Operation -> (least, largest magnitude); symmetric ones draw their sign from the range itself.
RANGES: dict[str, tuple[float, float]] = {
    "autocontrast": (0, 0),
    "equalize": (0, 0),
    "identity": (0, 0),
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "sharpness": (0.05, 0.95),
    "posterize": (4, 8),  # bits kept
    "solarize": (0, 256),  # threshold
    "rotate": (-30, 30),  # degrees
    "shear_x": (-0.3, 0.3),  # tangent
    "shear_y": (-0.3, 0.3),
    "translate_x": (-0.3, 0.3),  # share of the side
    "translate_y": (-0.3, 0.3),
}


def apply_operation(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """One operation of `RANGES` on an RGB image."""
    width, height = image.size
    operations: dict[str, Callable[[], Image.Image]] = {
        "autocontrast": lambda: F.autocontrast(image),
        "equalize": lambda: F.equalize(image),
        "identity": lambda: image,
        "brightness": lambda: F.adjust_brightness(image, magnitude),
        "color": lambda: F.adjust_saturation(image, magnitude),
        "contrast": lambda: F.adjust_contrast(image, magnitude),
        "sharpness": lambda: F.adjust_sharpness(image, magnitude),
        "posterize": lambda: F.posterize(image, int(magnitude)),
        "solarize": lambda: F.solarize(image, magnitude),
        "rotate": lambda: F.rotate(image, magnitude, fill=GREY),
        "shear_x": lambda: _affine(image, (1, magnitude, 0, 0, 1, 0)),
        "shear_y": lambda: _affine(image, (1, 0, 0, magnitude, 1, 0)),
        "translate_x": lambda: _affine(image, (1, 0, magnitude * width, 0, 1, 0)),
        "translate_y": lambda: _affine(image, (1, 0, 0, 0, 1, magnitude * height)),
    }
    return operations[name]()


def cutout(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """A grey square of `share` of the width around (x, y), shares of width and height."""
    side, (width, height) = share * image.width, image.size
    left, top = max(0, x * width - side / 2), max(0, y * height - side / 2)
    box = (round(left), round(top), round(min(width, left + side)), round(min(height, top + side)))
    image = image.copy()
    image.paste((GREY,) * 3, box)
    return image


class StrongAugment(nn.Module):
    """`num_ops` operations drawn with replacement, magnitudes uniform; Cutout of up to half a side.

    Args:
        num_ops: N.
    """

    def __init__(self, num_ops: int):
        super().__init__()
        self.num_ops = num_ops

    def forward(self, image: Image.Image) -> Image.Image:
        names = list(RANGES)
        for index in torch.randint(len(names), (self.num_ops,)).tolist():
            low, high = RANGES[names[index]]
            image = apply_operation(image, names[index], low + (high - low) * _uniform().item())
        share, x, y = _uniform(3).tolist()
        return cutout(image, share / 2, x, y)


def _uniform(count: int = 1) -> Tensor:
    return torch.rand(count)


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Pillow's affine map from output to input pixels, about the origin."""
    kind = Image.Transform.AFFINE
    return image.transform(image.size, kind, coefficients, fillcolor=(GREY,) * 3)
