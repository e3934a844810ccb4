"""Frechet distance of two sets of features (Heusel et al. 2017, arXiv 1706.08500): FID.

It is biased: between two samples of one law it is far above 0, the more so the fewer the images.
So it serves to repeat published columns alone, at one number of images for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expansion.measures.kernels import blocks, check_samples


@dataclass(frozen=True)
class Moments:
    """Mean (D,) of features, and a root r (at most D, D) of their covariance: cov = r' r."""

    mean: np.ndarray
    root: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Of features (N, D), N > 1; the covariance is divided by N - 1, as numpy's and pytorch-fid's.

    The triangle of a QR decomposition is that root; it is made block by block. Unlike a square root
    of the covariance it keeps all digits where there are fewer images than numbers in a feature.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    root = np.empty((0, features.shape[1]))
    for _, part in blocks(features):
        root = np.asarray(np.linalg.qr(np.concatenate([root, part - mean]), mode="r"))
    return Moments(mean, root / np.sqrt(len(features) - 1))


def frechet_of_moments(x: Moments, y: Moments) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), Heusel et al., Eq. (6).

    The trace of the root of S_x S_y is the sum of the singular values of r_x r_y'.
    """
    shared = np.linalg.svd(x.root @ y.root.T, compute_uv=False).sum()
    spreads = (x.root**2).sum() + (y.root**2).sum()
    return float(((x.mean - y.mean) ** 2).sum() + spreads - 2 * shared)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Of features (M, D) and (N, D); FID if they are the original Inception's.

    Raises:
        InputError: Fewer than two images, numbers that are not finite, or other features.
    """
    check_samples(x, y)
    return frechet_of_moments(moments(x), moments(y))
