"""Unbiased kernel distances of two samples of features: KID, CMMD and the papers' MMD.

Symbols: x (M, D) and y (N, D) features of two sets, k a kernel. Sums are of float64 and go over
blocks of pairs, so that memory does not grow with M N. An unbiased distance of two samples of one
law is 0 on average, so it is negative about half of the time; it must not be clipped.

Binkowski et al. 2018 (arXiv 1801.01401): KID.  Jayasumana et al. 2024 (2401.09603): CMMD.
Gretton et al. 2012, "A Kernel Two-Sample Test", Lemma 6: the U-statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from expansion.common.errors import require

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (B, D), (C, D) -> (B, C)

BLOCK = 2048  # rows of a block of pairs; 32 MB
CMMD_SIGMA = 10.0  # the paper's, for features of unit length
PERMUTATIONS_AT_ONCE = 256
MOST_FOR_BANDWIDTH = 2000  # features whose distances decide the bandwidth


class Estimate(NamedTuple):
    """A figure with its standard error; NaN where there are too few images for one."""

    value: float
    error: float


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(a, b) = (a b / D + 1)^3, Binkowski et al., Sec. 4."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def gaussian(sigma: float) -> Kernel:
    """k(a, b) = exp(-|a - b|^2 / (2 sigma^2))."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(x, y) / (2 * sigma**2))

    return kernel


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|a - b|^2 of all pairs, (B, C), not below 0."""
    norms = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    return np.maximum(norms - 2 * x @ y.T, 0.0)


def blocks(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows and what stands there, in float64, a block at a time."""
    for start in range(0, len(features), BLOCK):
        rows = slice(start, min(start + BLOCK, len(features)))
        yield rows, features[rows].astype(np.float64)


def check_samples(x: np.ndarray, y: np.ndarray) -> None:
    """Raise InputError for what no distance can be computed of."""
    for features in (x, y):
        require(
            features.ndim == 2 and len(features) > 1,
            f"a distance of {len(features)} image{'s' * (len(features) != 1)} is not defined; two "
            "are needed on either side",
        )
        require(
            bool(np.isfinite(features).all()),
            "features hold numbers that are not finite; look at the network that made them",
        )
    require(
        x.shape[1] == y.shape[1],
        f"features of {x.shape[1]} and of {y.shape[1]} numbers are of two networks; use one",
    )


def sums_within(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Sum over j != i of k(x_i, x_j), of every i, (M,)."""
    sums = np.zeros(len(x))
    for rows, left in blocks(x):
        for columns, right in blocks(x[: rows.stop]):
            values = kernel(left, right)
            if rows == columns:
                np.fill_diagonal(values, 0.0)
            else:
                sums[columns] += values.sum(axis=0)
            sums[rows] += values.sum(axis=1)
    return sums


def sums_between(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Sums of k(x_i, y_j) over j, (M,), and over i, (N,)."""
    of_x, of_y = np.zeros(len(x)), np.zeros(len(y))
    for rows, left in blocks(x):
        for columns, right in blocks(y):
            values = kernel(left, right)
            of_x[rows] += values.sum(axis=1)
            of_y[columns] += values.sum(axis=0)
    return of_x, of_y


def unbiased_mmd2(
    x: np.ndarray, y: np.ndarray, kernel: Kernel, within_y: np.ndarray | None = None
) -> Estimate:
    """Squared maximum mean discrepancy as a full U-statistic, with its jackknife error.

    mean of k(x_i, x_j), i != j + mean of k(y_i, y_j), i != j - 2 mean of k(x_i, y_j); Gretton et
    al., Eq. (3). The error leaves one image out at a time, of either side.

    Args:
        kernel: Such as `polynomial`.
        within_y: `sums_within(y, kernel)`, where several sets are compared with one.

    Raises:
        InputError: Fewer than two images, numbers that are not finite, or other features.
    """
    check_samples(x, y)
    m, n = len(x), len(y)
    within_x = sums_within(x, kernel)
    within_y = sums_within(y, kernel) if within_y is None else within_y
    of_x, of_y = sums_between(x, y, kernel)
    cross = of_x.sum()
    mean_x, mean_y = within_x.sum() / (m * (m - 1)), within_y.sum() / (n * (n - 1))
    variance = _jackknife(within_x, of_x, n) + _jackknife(within_y, of_y, m)
    return Estimate(float(mean_x + mean_y - 2 * cross / (m * n)), math.sqrt(variance))


def _jackknife(within: np.ndarray, across: np.ndarray, num_others: int) -> float:
    """Variance of the statistic from leaving out one image of one side at a time."""
    m = len(within)
    if m < 3:
        return math.nan
    left = (within.sum() - 2 * within) / ((m - 1) * (m - 2))
    left -= 2 * (across.sum() - across) / ((m - 1) * num_others)
    return float((m - 1) * left.var())


def permutation_p_value(
    x: np.ndarray,
    y: np.ndarray,
    kernel: Kernel,
    num_permutations: int,
    generator: np.random.Generator,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Share of random divisions of all images into two sets whose distance is no smaller.

    The division at hand counts as one, so that under the hypothesis that both sets are of one law,
    and their images independent, P(p <= a) <= a (Phipson and Smyth 2010). One Gram matrix of
    (M + N)^2 serves all permutations; its memory is the caller's concern.

    Args:
        kernel: Such as `polynomial`.
        num_permutations: Random divisions.
        generator: Draws them.
        labels: Classes of the images of either side, (M,) and (N,). A division then leaves each
            side as many images of every class as it has: sets whose numbers of images per class
            were chosen are more alike than chance would make them, and p would be near 1.
    """
    check_samples(x, y)
    m, n = len(x), len(y)
    pooled = np.concatenate([x, y]).astype(np.float64)
    gram = kernel(pooled, pooled)
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=1)
    total = sums.sum()

    def distances(chosen: np.ndarray) -> np.ndarray:
        """The statistic where `chosen` (P, M + N) is 1 for the first set and 0 for the second."""
        within = ((chosen @ gram) * chosen).sum(axis=1)
        outgoing = chosen @ sums
        cross = outgoing - within
        others = total - 2 * outgoing + within
        return within / (m * (m - 1)) + others / (n * (n - 1)) - 2 * cross / (m * n)

    at_hand = np.repeat([1.0, 0.0], [m, n])
    groups = np.zeros(m + n) if labels is None else np.concatenate(labels)
    observed = distances(at_hand[None])[0]
    # Divisions that are the one at hand may differ from it by rounding.
    slack = 1e-12 * max(abs(gram.max()), abs(observed))
    num_larger = 0
    for start in range(0, num_permutations, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, num_permutations - start)
        chosen = _divisions(at_hand, groups, count, generator)
        num_larger += int((distances(chosen) >= observed - slack).sum())
    return (1 + num_larger) / (1 + num_permutations)


def _divisions(
    at_hand: np.ndarray, groups: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Random divisions (P, N) of 0 and 1, as many of each in every group as `at_hand` has."""
    by_group = np.lexsort((at_hand, groups))
    _, numbers = np.unique(groups, return_inverse=True)
    # Sorted by these, the images of a group stand together, in random order.
    order = np.argsort(numbers + generator.random((count, len(groups))), axis=1)
    chosen = np.empty((count, len(groups)))
    np.put_along_axis(chosen, order, np.repeat(at_hand[by_group][None], count, axis=0), axis=1)
    return chosen


def unit_length(features: np.ndarray) -> np.ndarray:
    """Every feature divided by its length; one of length 0 stays."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1.0)).astype(features.dtype)


def kid(x: np.ndarray, y: np.ndarray, within_y: np.ndarray | None = None) -> Estimate:
    """Kernel Inception distance, unbiased, over all pairs; of raw features."""
    return unbiased_mmd2(x, y, polynomial, within_y)


def cmmd(x: np.ndarray, y: np.ndarray, within_y: np.ndarray | None = None) -> Estimate:
    """CLIP's maximum mean discrepancy without the bias of the published code, which keeps k(a, a).

    Args:
        x: Features of unit length, as `unit_length` makes them; `y` too.
        within_y: As in `unbiased_mmd2`.
    """
    return unbiased_mmd2(x, y, gaussian(CMMD_SIGMA), within_y)


def median_bandwidth(features: np.ndarray, generator: np.random.Generator) -> float:
    """Median distance of two features, of a random sample of them; 1 where all are the same."""
    count = min(len(features), MOST_FOR_BANDWIDTH)
    chosen = features[np.sort(generator.choice(len(features), count, replace=False))]
    squared = squared_distances(chosen.astype(np.float64), chosen.astype(np.float64))
    median = math.sqrt(np.median(squared[np.triu_indices(count, k=1)])) if count > 1 else 0.0
    return median or 1.0
