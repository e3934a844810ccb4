"""The gains and losses of an arm class by class, and the classes that are confused."""

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
    """How many images of a class are recognised without and with generated images.

    Attributes:
        name: Name of the class.
        num_test: Number of its test images.
        before: How many of them real images alone recognise, averaged over the runs.
        after: How many of them the other arm recognises, averaged over the runs.
        gain: The gain of its recall, in points.
    """

    name: str
    num_test: int
    before: float
    after: float
    gain: Gain


@dataclass(frozen=True)
class Confused:
    """Numbers of images of class `name` that are taken for `other`, averaged over the runs."""

    name: str
    other: str
    before: float
    after: float


def class_changes(
    base: Sequence[Predictions], arm: Sequence[Predictions], paired: bool
) -> list[ClassChange]:
    """The change of every class with test images, the greatest gain first.

    Args:
        base: Predictions of the runs on real images alone.
        arm: Predictions of the other arm's runs.
        paired: Whether run i of both has the same seed.
    """
    changes = []
    for label, name in enumerate(base[0].class_names):
        chosen = np.flatnonzero(base[0].labels == label)
        if len(chosen):
            before, after = ([_part(each, chosen) for each in runs] for runs in (base, arm))
            old, new = (float(np.mean([p.hits.sum() for p in runs])) for runs in (before, after))
            gain = compare(after, before, "last_accuracy", paired)
            changes.append(ClassChange(name, len(chosen), old, new, gain))
    return sorted(changes, key=lambda change: -change.gain.mean)


def mean_confusion(runs: Sequence[Predictions]) -> np.ndarray:
    """Numbers of images by right and predicted class, averaged over the runs, (C, C)."""
    return np.mean([confusion(each) for each in runs], axis=0)


def greatest_confusions(
    before: np.ndarray, after: np.ndarray, names: Sequence[str], count: int
) -> list[Confused]:
    """The pairs of classes that are confused most, before or after.

    Args:
        before: As `mean_confusion` gives it, (C, C).
        after: The same of the other arm.
        names: Names of the C classes.
        count: Largest number of pairs.
    """
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
    """The predictions of all runs of an arm; an empty list if a run lacks them."""
    predictions = [run.predictions for run in arm.row.runs] if arm else []
    return predictions if all(predictions) else []


def _part(predictions: Predictions, chosen: np.ndarray) -> Predictions:
    return Predictions(
        tuple(predictions.file_names[i] for i in chosen),
        predictions.labels[chosen],
        predictions.probabilities[chosen],
        predictions.class_names,
    )
