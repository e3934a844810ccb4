"""Which part of a mix stays real."""

from __future__ import annotations

import torch
from torch import Tensor

# The half that stays real; the released code has the first of each direction alone.
SIDES = {"paper": ("left", "top", "right", "bottom"), "released": ("left", "top")}
SEAM = 20 / 512  # the released code's seam, as a share of the side


def real_share(side: str, height: int, width: int, seam: float = 0.0) -> Tensor:
    """The share of the real image in each pixel of a mix, (H, W) in [0, 1].

    Args:
        side: The half that stays real: left, top, right or bottom.
        height: Of the image, pixels.
        width: Of the image, pixels.
        seam: Width of the strip in the middle where the share falls linearly from 1 to 0, as a part
            of the side; 0: the halves meet sharply.
    """
    length = width if side in ("left", "right") else height
    strip = 2 * round(seam * length / 2)  # even, so that it lies in the middle
    share = torch.ones(length)
    share[length // 2 :] = 0
    if strip:
        first = length // 2 - strip // 2
        share[first : first + strip] = torch.linspace(1, 0, strip)
    if side in ("right", "bottom"):
        share = share.flip(0)
    lines = share.view(1, -1) if side in ("left", "right") else share.view(-1, 1)
    return lines.expand(height, width)
