"""What a plot of prototypes shows: features and prototypes on the real images' principal axes.

M images, N classes, K groups, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distdiff.prototypes import build_prototypes
from expansion.common.errors import require
from expansion.pictures.scatter import Points


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of the two principal axes of some vectors.

    Attributes:
        mean: (D,).
        axes: (2, D), orthogonal, of unit length; the largest element of each is positive.
        shares: Of the variance along each, 0 to 1.
    """

    mean: np.ndarray
    axes: np.ndarray
    shares: tuple[float, float]

    def places(self, vectors: np.ndarray) -> np.ndarray:
        """Coordinates (M, 2) of vectors (M, D)."""
        return (vectors - self.mean) @ self.axes.T

    @property
    def axis_labels(self) -> tuple[str, str]:
        first, second = (f"{100 * share:.0f} %" for share in self.shares)
        return f"principal axis 1 ({first})", f"principal axis 2 ({second})"


def principal_plane(vectors: np.ndarray) -> Plane:
    """The plane of the largest variance of vectors (M, D).

    Raises:
        InputError: They span no plane.
    """
    mean = vectors.mean(axis=0)
    _, lengths, axes = np.linalg.svd(vectors - mean, full_matrices=False)
    variances = lengths**2
    spans = len(variances) > 1 and variances[1] > 1e-12 * max(variances[0], 1e-30)
    require(spans, f"the features of the {len(vectors)} real images span no plane; show more")
    axes = axes[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    first, second = (float(v) for v in variances[:2] / variances.sum())
    return Plane(mean, axes * signs[:, None], (first, second))


def unit(features: torch.Tensor) -> np.ndarray:
    """Features (M, D) at unit length."""
    return torch.nn.functional.normalize(features.double(), dim=-1).numpy()


def points_of(
    plane: Plane,
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]],
    num_classes: int,
    num_groups: int,
) -> list[Points]:
    """What a panel shows.

    Args:
        plane: Where it is shown.
        parts: Features (M, D) and labels (M,) of the real images, then those of generated ones.
        num_classes: N; labels count from 0.
        num_groups: K of the group prototypes.
    """
    kinds = (("generated", "x", 12), ("real", "o", 18))
    points = [
        Points(plane.places(unit(features)), labels.numpy(), marker, title, size)
        for (features, labels), (title, marker, size) in zip(
            reversed(parts), kinds[-len(parts) :], strict=True
        )
    ]
    prototypes = build_prototypes(*parts[0], num_classes, num_groups)
    each = np.arange(num_classes)
    groups = prototypes.group_prototypes.flatten(0, 1).double().numpy()
    classes = prototypes.class_prototypes.double().numpy()
    return [
        *points,
        Points(plane.places(groups), each.repeat(num_groups), "D", "group prototype", 60, True),
        Points(plane.places(classes), each, "*", "class prototype", 220, True),
    ]
