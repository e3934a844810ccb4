"""What an arm gains and loses class by class, and which classes are confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expansion.metrics.comparison import Gain, compare
from expansion.metrics.measures import confusion
from expansion.metrics.predictions import Predictions
from expansion.report.verdict import Arm


@dataclass(frozen=True)
class ClassChange:
    """A class before and after.

    Attributes:
        num_test: Its test images.
        before: How many of them are recognised, mean over the runs; `after` likewise.
        gain: Of its recall, in points.
    """

    name: str
    num_test: int
    before: float
    after: float
    gain: Gain


@dataclass(frozen=True)
class Confused:
    """Images of `name` that are taken for `other`, mean over the runs."""

    name: str
    other: str
    before: float
    after: float


def class_changes(
    base: Sequence[Predictions], arm: Sequence[Predictions], paired: bool
) -> list[ClassChange]:
    """Of every class with test images, the greatest gain first.

    Args:
        paired: Whether run i of both has the same seed.
    """
    changes = []
    for label, name in enumerate(base[0].class_names):
        chosen = np.flatnonzero(base[0].labels == label)
        if len(chosen):
            before, after = ([_part(each, chosen) for each in runs] for runs in (base, arm))
            counts = (float(np.mean([p.hits.sum() for p in runs])) for runs in (before, after))
            gain = compare(after, before, "last_accuracy", paired)
            changes.append(ClassChange(name, len(chosen), *counts, gain))
    return sorted(changes, key=lambda change: -change.gain.mean)


def mean_confusion(runs: Sequence[Predictions]) -> np.ndarray:
    """Images by right class and predicted class, mean over the runs, (C, C)."""
    return np.mean([confusion(each) for each in runs], axis=0)


def greatest_confusions(
    before: np.ndarray, after: np.ndarray, names: Sequence[str], count: int
) -> list[Confused]:
    """The pairs of classes that are confused most, before or after."""
    worst = np.maximum(before, after)
    np.fill_diagonal(worst, 0)
    places = np.argsort(-worst, axis=None, kind="stable")[:count]
    pairs = (np.unravel_index(place, worst.shape) for place in places)
    return [
        Confused(names[i], names[j], float(before[i, j]), float(after[i, j]))
        for i, j in pairs
        if worst[i, j] > 0
    ]


def all_predictions(arm: Arm | None) -> list[Predictions]:
    """Those of all runs of an arm; none if a run lacks them."""
    found = [run.predictions for run in arm.row.runs] if arm else []
    return found if all(found) else []


def _part(predictions: Predictions, chosen: np.ndarray) -> Predictions:
    return Predictions(
        tuple(predictions.file_names[i] for i in chosen),
        predictions.labels[chosen],
        predictions.probabilities[chosen],
        predictions.class_names,
    )
