"""Formulas of the measures, in percent, for predictions on a test set.

Every measure is a function of

    predictions  those of N test images
    weights      (..., N), how often each image occurs in a resample; None counts each image once

and returns an array (...), one value for each resample, or a single value without weights. A value
that cannot be computed is NaN.

A class without images in the test set (or in a resample) has no recall and no AUROC, and means over
classes leave it out. If such a class is predicted, that counts as a miss of the image's own class.
"""

from __future__ import annotations

import numpy as np

from expansion.metrics.predictions import Predictions

NUM_BINS = 15  # bins of the confidence, of equal width


def accuracy(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of the images whose most probable class is right; arguments as in the module's text."""
    return _mean(predictions.hits, _weights(predictions, weights))


def balanced_accuracy(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """The share of images that are recognised, of each class, averaged over the classes."""
    recognised, present, _ = _class_counts(predictions, _weights(predictions, weights))
    return _mean_where(_ratio(recognised, present), present > 0)


def macro_f1(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class, averaged over the classes."""
    recognised, present, predicted = _class_counts(predictions, _weights(predictions, weights))
    return _mean_where(_ratio(2 * recognised, present + predicted), present > 0)


def auroc(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve.

    This is the chance that an image of a class gets a higher probability of that class than an
    image of another class; equal probabilities count half. Of two classes the second one counts; of
    more, each is compared with all others, and the areas are averaged.
    """
    weights = _weights(predictions, weights)
    num_classes = len(predictions.class_names)
    parts = [
        _area(predictions.probabilities[:, label], predictions.labels == label, weights)
        for label in ([1] if num_classes == 2 else range(num_classes))
    ]
    areas = np.stack(parts, axis=-1)
    return _mean_where(areas, ~np.isnan(areas))


def calibration_error(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error (Guo et al. 2017) of the most probable class.

    It is the sum over the bins of confidence of share of the images * |accuracy - mean confidence|.
    There are NUM_BINS bins of equal width, to each of which its upper border belongs. Where bins
    hold few images, the error is above 0 by chance alone.
    """
    weights = _weights(predictions, weights)
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    excess = (confidence - predictions.hits)[:, None] * (bins[:, None] == np.arange(NUM_BINS))
    return 100 * _ratio(np.abs(weights @ excess).sum(axis=-1), weights.sum(axis=-1))


def per_class_recall(predictions: Predictions) -> np.ndarray:
    """Share of each class's images that are recognised, percent, (C,); NaN without images."""
    recognised, present, _ = _class_counts(predictions, _weights(predictions, None))
    return 100 * _ratio(recognised, present)


def confusion(predictions: Predictions) -> np.ndarray:
    """Number of images of each right class (row) and predicted class (column), (C, C)."""
    num_classes = len(predictions.class_names)
    pairs = predictions.labels * num_classes + predictions.predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _weights(predictions: Predictions, weights: np.ndarray | None) -> np.ndarray:
    return np.ones(len(predictions.labels)) if weights is None else weights.astype(np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(100 * (weights @ values.astype(np.float64)), weights.sum(axis=-1))


def _mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the values whose `counts` is true, percent."""
    return 100 * _ratio(np.where(counts, values, 0).sum(axis=-1), counts.sum(axis=-1))


def _class_counts(predictions: Predictions, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Numbers of images of each class: recognised, all, and taken for the class, each (..., C)."""
    numbers = np.arange(len(predictions.class_names))
    own = predictions.labels[:, None] == numbers
    chosen = predictions.predicted[:, None] == numbers
    counts = (own & chosen, own, chosen)
    recognised, present, predicted = (weights @ each.astype(np.float64) for each in counts)
    return recognised, present, predicted


def _area(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mann-Whitney statistic of weighted scores; NaN without images of both kinds.

    It follows from the ranks of the class's images among all images, minus the P^2 / 2 pairs that
    the P images of the class form among themselves.

    Args:
        scores: Probability of the class for each image, (N,).
        positive: Which images are of the class, (N,) bool.
        weights: (..., N).
    """
    # Images in the order of their scores; those of equal scores share the middle of their ranks.
    order = np.argsort(scores, kind="stable")
    ranked, positive, weights = scores[order], positive[order], weights[..., order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of groups of equal scores
    groups = weights if len(starts) == len(ranked) else np.add.reduceat(weights, starts, axis=-1)
    ranks = np.cumsum(groups, axis=-1)
    ranks -= groups / 2
    # The sum of the ranks of the class's images.
    group_of = np.searchsorted(starts, np.flatnonzero(positive), side="right") - 1
    mine = weights[..., positive]
    own, whole = mine.sum(axis=-1), weights.sum(axis=-1)
    return _ratio((mine * ranks[..., group_of]).sum(axis=-1) - own**2 / 2, own * (whole - own))
