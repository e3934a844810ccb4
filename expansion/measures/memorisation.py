"""How near generated images come to real ones: copies of training images, leaks of test images.

Near is what one fresh real image in a hundred is. Fresh real images are the test images: they were
neither trained on nor copied from. So the limits are the 1st percentiles of their distances to the
nearest training image (for copies) and to the nearest other test image (for leaks and twins).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expansion.measures.distributions import Sample
from expansion.measures.neighbours import distances_to, nearest

PERCENTILE = 1.0
# Of the median distance: identical images count as copies also where real ones are identical.
LEAST_LIMIT = 1e-3


@dataclass(frozen=True)
class Limits:
    """Distances up to which an image counts as a copy of a training image, and of a test image."""

    copy: float
    leak: float


@dataclass(frozen=True)
class Nearness:
    """Distances of every image of a set, NaN where there is no such image, and to which, or -1.

    Attributes:
        source: To the real image that it was made from.
        train: To the nearest other training image; `train_index` says which.
        test: To the nearest test image; `test_index` says which.
        twin: To the nearest image of its class in the set; `twin_index` says which.
    """

    source: np.ndarray
    train: np.ndarray
    train_index: np.ndarray
    test: np.ndarray
    test_index: np.ndarray
    twin: np.ndarray
    twin_index: np.ndarray

    def copies(self, limits: Limits) -> np.ndarray:
        """Numbers of the images that are copies of a training image, the nearest first."""
        return _up_to(np.fmin(self.source, self.train), limits.copy)

    def leaks(self, limits: Limits) -> np.ndarray:
        """Numbers of the images that are copies of a test image, the nearest first."""
        return _up_to(self.test, limits.leak)

    def twins(self, limits: Limits) -> np.ndarray:
        """Numbers of the images that another one of their class in the set is a copy of."""
        return _up_to(self.twin, limits.leak)

    @property
    def nearer_to_source(self) -> float:
        """Share of the images that are nearer to their source than to all other training images."""
        known = np.isfinite(self.source) & np.isfinite(self.train)
        return float((self.source < self.train)[known].mean()) if known.any() else float("nan")


def limits_of(train: np.ndarray, test: np.ndarray) -> Limits:
    """From features of the real images."""
    itself = np.arange(len(test))
    found = (nearest(test, train).distance, nearest(test, test, itself).distance)
    percentiles = [np.nanpercentile(each, PERCENTILE) for each in found]
    least = [LEAST_LIMIT * np.nanmedian(each) for each in found]
    return Limits(*(float(max(pair)) for pair in zip(percentiles, least, strict=True)))


def nearness(
    sample: Sample,
    train: np.ndarray,
    test: np.ndarray,
    source_index: np.ndarray,
    test_self: np.ndarray | None = None,
) -> Nearness:
    """Of every image of a set.

    Args:
        train: Features of the training images; `test` likewise.
        source_index: Which of the training images each was made from; -1: none of them.
        test_self: Which of the test images each is, for real ones; default: none.
    """
    x = sample.features
    of_train = nearest(x, train, source_index)
    of_test = nearest(x, test, test_self)
    twin, twin_index = np.full(len(x), np.nan), np.full(len(x), -1)
    for label in np.unique(sample.labels):
        members = np.flatnonzero(sample.labels == label)
        found = nearest(x[members], x[members], np.arange(len(members)))
        twin[members] = found.distance
        twin_index[members] = np.where(found.index < 0, -1, members[found.index])
    source = distances_to(x, train, source_index)
    return Nearness(source, *of_train, *of_test, twin, twin_index)


def _up_to(distances: np.ndarray, limit: float) -> np.ndarray:
    order = np.argsort(distances, kind="stable")
    return order[distances[order] <= limit]
