"""Latents whose channels are scaled and shifted at random, and kept close to what they were.

DistDiff and GIF-SD both take z to (1 + w) z + b, move w and b along a gradient, and limit the
result to a ball around z.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def transform_latents(latents: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """tau(z) = (1 + w) z + b.

    Args:
        latents: z, (B, 4, h, w).
        scale: w, (B, 4, 1, 1).
        shift: b, (B, 4, 1, 1).
    """
    return (1 + scale) * latents + shift


def draw_transform(latents: Tensor, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw w ~ U(0, 1) and b ~ N(0, 1), each (B, 4, 1, 1): one number per sample and channel.

    Args:
        latents: (B, 4, h, w); only their shape and device are used.
        generators: B, one per sample, on the CPU.
    """
    channels = latents.shape[1]
    scale = torch.stack([torch.rand(channels, 1, 1, generator=g) for g in generators])
    shift = torch.stack([torch.randn(channels, 1, 1, generator=g) for g in generators])
    return scale.to(latents.device), shift.to(latents.device)


def project(latents: Tensor, center: Tensor, radius: float) -> Tensor:
    """Limit each element of `latents` to within `radius` of `center` (an l-infinity ball).

    Args:
        latents: (B, 4, h, w), VAE-scaled.
        center: Same shape.
        radius: Largest change of an element; 0 returns `center`.
    """
    return center + (latents - center).clamp(-radius, radius)


def finite_or_zero(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the gradient of samples in which it is not finite by zero.

    Returns:
        The gradient (B, ...), and (B,) with 1.0 for each sample that was replaced.
    """
    unusable = ~gradient.isfinite().flatten(1).all(dim=1)
    kept = torch.where(unusable.view(-1, *[1] * (gradient.dim() - 1)), 0.0, gradient)
    return kept, unusable.float()
