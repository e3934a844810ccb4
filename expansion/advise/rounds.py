"""What the rounds of a pilot say: scores, who goes on, and whether expansion pays off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from expansion.metrics.comparison import Gain, compare
from expansion.metrics.predictions import Predictions
from expansion.study.config import Arm

METRIC = "last_accuracy"
LEAST_PROBABILITY = 0.8  # of a gain above 0, for expansion to be advised
NUM_HALVINGS = 20  # of the range of levels in which the probability is looked for


@dataclass(frozen=True)
class Place:
    """An arm in a round.

    Attributes:
        arm: The arm.
        accuracy: Top-1 over all training images, each predicted while its part was left out, mean
            of the repeats; percent.
        certainty: Mean probability of the right class, which decides between equal accuracies.
        goes_on: Whether it takes part in the next round.
    """

    arm: Arm
    accuracy: float
    certainty: float
    goes_on: bool = True


@dataclass(frozen=True)
class Answer:
    """What the pilot advises.

    Attributes:
        expand: Whether to make images.
        best: The best arm with generated images.
        base: The best arm without.
        gain: Of `best` over `base`, in points, with its interval.
        probability: Of a gain above 0.
    """

    expand: bool
    best: Arm
    base: Arm
    gain: Gain
    probability: float


def standing(
    arms: Sequence[Arm], predictions: Mapping[int, Sequence[Predictions]], survivors: int
) -> list[Place]:
    """The arms from the best to the worst; of equal ones, the one that is listed first leads.

    Args:
        arms: The arms of a round.
        predictions: Position of an arm -> its predictions, one for each repeat.
        survivors: Number of arms that go on.
    """
    places = [
        Place(
            arm,
            100 * fmean(float(p.hits.mean()) for p in predictions[number]),
            fmean(map(_certainty, predictions[number])),
        )
        for number, arm in enumerate(arms)
    ]
    places.sort(key=lambda place: (round(place.accuracy, 6), place.certainty), reverse=True)
    return [
        Place(place.arm, place.accuracy, place.certainty, rank < survivors)
        for rank, place in enumerate(places)
    ]


def _certainty(predictions: Predictions) -> float:
    rows = range(len(predictions.labels))
    return float(predictions.probabilities[rows, predictions.labels].mean())


def answer(
    best: Arm, its: Sequence[Predictions], base: Arm, others: Sequence[Predictions]
) -> Answer:
    """Compare the best arm with generated images with the best one without.

    Args:
        best: The former.
        its: Its predictions, one for each repeat.
        base: The latter.
        others: Its predictions, of the same seeds.
    """
    gain = compare(its, others, METRIC)
    probability = _probability(its, others) if gain.mean > 0 else 1 - _probability(others, its)
    return Answer(gain.mean > 0 and probability >= LEAST_PROBABILITY, best, base, gain, probability)


def _probability(better: Sequence[Predictions], worse: Sequence[Predictions]) -> float:
    """The probability of a gain above 0: that of the widest interval of the gain without 0 in it.

    It is 1/2 if no interval is without it.
    """
    low, high = 0.0, 1.0
    for _ in range(NUM_HALVINGS):
        level = (low + high) / 2
        if compare(better, worse, METRIC, level=level).low > 0:
            low = level
        else:
            high = level
    return (1 + low) / 2
