"""Formulas of the measures, in percent, of predictions on a test set.

Every measure takes weights of the images besides: how often each occurs in a resample. With weights
(..., N) it gives (...) values; without, one value. What cannot be computed is NaN.

Classes of which the test set (or a resample) has no image have no recall and no AUROC; means over
classes leave them out. Predicting such a class counts as a miss of the image's own class.
"""

from __future__ import annotations

import numpy as np

from expansion.metrics.predictions import Predictions

NUM_BINS = 15  # of the confidence, of equal width


def accuracy(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of the images whose most probable class is right."""
    return _mean(predictions.hits, _weights(predictions, weights))


def balanced_accuracy(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over the classes of the share of their images that are recognised."""
    found, present, _ = _class_counts(predictions, _weights(predictions, weights))
    return _mean_where(_ratio(found, present), present > 0)


def macro_f1(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over the classes of 2 TP / (2 TP + FP + FN)."""
    found, present, predicted = _class_counts(predictions, _weights(predictions, weights))
    return _mean_where(_ratio(2 * found, present + predicted), present > 0)


def auroc(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: of the second of two classes; else of each against the rest, mean.

    The chance that an image of the class gets a higher probability of it than another image;
    equal probabilities count half.
    """
    weights = _weights(predictions, weights)
    num_classes = len(predictions.class_names)
    areas = [
        _area(predictions.probabilities[:, label], predictions.labels == label, weights)
        for label in ([1] if num_classes == 2 else range(num_classes))
    ]
    areas = np.stack(areas, axis=-1)
    return _mean_where(areas, ~np.isnan(areas))


def calibration_error(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error (Guo et al. 2017) of the most probable class.

    sum over bins of share of the images * |accuracy - mean confidence|; NUM_BINS bins of equal
    width, each with its upper border. It is above 0 by chance alone where bins hold few images.
    """
    weights = _weights(predictions, weights)
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    excess = (confidence - predictions.hits)[:, None] * (bins[:, None] == np.arange(NUM_BINS))
    return 100 * _ratio(np.abs(weights @ excess).sum(axis=-1), weights.sum(axis=-1))


def per_class_recall(predictions: Predictions) -> np.ndarray:
    """Share of each class's images that are recognised, percent, (C,); NaN without images."""
    found, present, _ = _class_counts(predictions, _weights(predictions, None))
    return 100 * _ratio(found, present)


def confusion(predictions: Predictions) -> np.ndarray:
    """Number of images by right class (row) and predicted class (column), (C, C)."""
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
    """Percent: the mean over the last axis of the values that count."""
    return 100 * _ratio(np.where(counts, values, 0).sum(axis=-1), counts.sum(axis=-1))


def _class_counts(predictions: Predictions, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Images of each class that are recognised, images of it, and images taken for it: (..., C)."""
    numbers = np.arange(len(predictions.class_names))
    own = predictions.labels[:, None] == numbers
    chosen = predictions.predicted[:, None] == numbers
    counts = (own & chosen, own, chosen)
    found, present, predicted = (weights @ each.astype(np.float64) for each in counts)
    return found, present, predicted


def _area(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mann-Whitney statistic of weighted scores; NaN without images of both kinds.

    From the ranks among all images: those of the class have P^2 / 2 pairs among themselves.
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive, weights = scores[order], positive[order], weights[..., order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of groups of equal scores
    groups = weights if len(starts) == len(ranked) else np.add.reduceat(weights, starts, axis=-1)
    ranks = np.cumsum(groups, axis=-1)
    ranks -= groups / 2
    group_of = np.searchsorted(starts, np.flatnonzero(positive), side="right") - 1
    mine = weights[..., positive]
    found, whole = mine.sum(axis=-1), weights.sum(axis=-1)
    return _ratio(
        (mine * ranks[..., group_of]).sum(axis=-1) - found**2 / 2, found * (whole - found)
    )
