"""Converts Pillow images to tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

BICUBIC = InterpolationMode.BICUBIC


def to_unit_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to (3, H, W) float32 in [0, 1]."""
    return F.to_dtype(F.to_image(image), torch.float32, scale=True)


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to (H, W, 3) uint8."""
    return torch.from_numpy(np.array(image))
