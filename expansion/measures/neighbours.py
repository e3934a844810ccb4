"""Nearest images by features: coverage, density, and how near generated images come to real ones.

Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models" (2002.09797).
Pairs are looked at block by block, as in `kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from expansion.common.errors import require
from expansion.measures.kernels import blocks, check_samples, squared_distances


class Nearest(NamedTuple):
    """Of each image the distance to its nearest one, and which that is; NaN and -1 without any."""

    distance: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name


def nearest(x: np.ndarray, y: np.ndarray, barred: np.ndarray | None = None) -> Nearest:
    """The nearest of `y` to each of `x`.

    Args:
        barred: (M,) the one of `y` that does not count, such as the image itself; -1: all do.
    """
    best = np.full(len(x), np.inf)
    index = np.full(len(x), -1)
    for rows, left in blocks(x):
        for columns, right in blocks(y):
            squared = squared_distances(left, right)
            if barred is not None:
                inside = (barred[rows] >= columns.start) & (barred[rows] < columns.stop)
                squared[inside, barred[rows][inside] - columns.start] = np.inf
            place = squared.argmin(axis=1)
            value = squared[np.arange(len(left)), place]
            better = value < best[rows]
            best[rows] = np.where(better, value, best[rows])
            index[rows] = np.where(better, place + columns.start, index[rows])
    return Nearest(distances_to(x, y, index), index)


def distances_to(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> np.ndarray:
    """|x_i - y_index[i]| without the rounding of `squared_distances`; NaN where the index is -1."""
    found = np.full(len(x), np.nan)
    for rows, left in blocks(x):
        chosen = index[rows]
        right = y[chosen].astype(np.float64)
        found[rows] = np.where(chosen < 0, np.nan, np.linalg.norm(left - right, axis=1))
    return found


def squared_radii(y: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each image to its k-th nearest other one, (N,)."""
    radii = np.empty(len(y))
    for rows, left in blocks(y):
        kept = np.empty((len(left), 0))
        for columns, right in blocks(y):
            squared = squared_distances(left, right)
            if rows == columns:
                np.fill_diagonal(squared, np.inf)
            kept = np.concatenate([kept, squared], axis=1)
            kept = np.partition(kept, min(k, kept.shape[1]) - 1, axis=1)[:, :k]
        radii[rows] = kept.max(axis=1)
    return radii


def coverage_and_density(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float]:
    """How much of `y`, the real images, `x` covers, and how densely; Naeem et al., Eqs. (5), (6).

    B_i is the ball around y_i up to its k-th nearest other real image. Coverage: share of balls
    with a generated image in them. Density: mean number of balls around a generated image, over k.
    Of two samples of one law and one size: about 1 - 2^-k, and 1.

    Raises:
        InputError: See `check_samples`; or k real images or fewer.
    """
    check_samples(x, y)
    require(len(y) > k, f"coverage by {k} neighbours needs more than {k} real images")
    radii = squared_radii(y, k)
    inside = np.zeros(len(y), dtype=np.int64)
    for rows, left in blocks(y):
        for _, right in blocks(x):
            inside[rows] += (squared_distances(left, right) <= radii[rows][:, None]).sum(axis=1)
    return float((inside > 0).mean()), float(inside.sum() / (k * len(x)))
