"""What the rounds of a pilot say: scores, who goes on, and whether expansion pays off.

The first round decides between the augmentations, by the mean over all methods, because a single
arm of a few images says little. From the next round on the better half of the arms goes on.

A pilot on 20 images leaves a gain open by 20 points. So it is weighed against a normal prior:
generated images take away `PRIOR_SHARE` of the errors that classic augmentation leaves, give or
take `PRIOR_SPREAD`. The best arms of docs/results.md took away 12 to 62 %. On many images the pilot
prevails; where there are few errors, there is nothing to gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.special import ndtr

from expansion.metrics.comparison import LEVEL, Gain, compare
from expansion.metrics.predictions import Predictions
from expansion.study.settings import Arm

METRIC = "last_accuracy"
PRIOR_SHARE, PRIOR_SPREAD = 0.2, 0.2  # of the errors of the best arm without generated images
LEAST_ERRORS = 1.0  # percent; the pilot's errors are not taken for fewer
QUANTILE = 1.96  # of a normal distribution, for 95 %
ONE_SIGMA = 0.6827  # share of a normal distribution within one standard deviation


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
        gain: Of `best` over `base` in the pilot, in points, with its 95 % interval.
        expected: The gain that is expected, in points: that of the pilot and the prior together.
        deviation: Its standard deviation.
    """

    expand: bool
    best: Arm
    base: Arm
    gain: Gain
    expected: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the expected gain."""
        half = QUANTILE * self.deviation
        return self.expected - half, self.expected + half

    @property
    def probability(self) -> float:
        """The probability of a gain above 0."""
        return float(ndtr(self.expected / max(self.deviation, 1e-9)))


def standing(arms: Sequence[Arm], predictions: Mapping[int, Sequence[Predictions]]) -> list[Place]:
    """The arms from the best to the worst; of equal ones, the one that is listed first leads.

    Args:
        arms: The arms of a round.
        predictions: Position of an arm -> its predictions, one for each repeat.
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
    return places


def survivors(places: Sequence[Place], is_first: bool) -> list[Arm]:
    """The arms that go on, with or without generated images, in the order of their places.

    Real images alone go on in the augmentation that is kept, and in others that did better.

    Args:
        places: All arms of a round, from the best to the worst.
        is_first: Whether it is the first round.
    """
    made = [place.arm for place in places if place.arm.method is not None]
    real = [place.arm for place in places if place.arm.method is None]
    means = _means_of_augmentations(places, {augmentation(arm) for arm in made})
    if is_first and len(means) > 1:
        best = max(sorted(means), key=lambda family: means[family])
        made = [arm for arm in made if augmentation(arm) == best]
        augmented = [augmentation(arm) == best for arm in real]
        real = real[: augmented.index(True) + 1] if any(augmented) else real
    else:
        made = made[: math.ceil(len(made) / 2)]
    return [place.arm for place in places if place.arm in (*made, *real)]


def counts_of_rounds(arms: Iterable[Arm], num_rounds: int) -> list[int]:
    """Number of arms with generated images in each round, if all augmentations have as many."""
    made = [arm for arm in arms if arm.method is not None]
    families = len({augmentation(arm) for arm in made})
    counts = [len(made)]
    for number in range(1, num_rounds):
        is_choice = number == 1 and families > 1
        counts.append(math.ceil(counts[-1] / (families if is_choice else 2)))
    return counts


def augmentation(arm: Arm) -> str:
    """The augmentation of an arm's images, as in `--augment`."""
    return str(arm.options.get("augment", "default"))


def answer(
    best: Arm,
    its: Sequence[Predictions],
    base: Arm,
    others: Sequence[Predictions],
    worth: float,
) -> Answer:
    """Compare the best arm with generated images with the best one without.

    Args:
        best: The former.
        its: Its predictions, one for each repeat.
        base: The latter.
        others: Its predictions, of the same seeds.
        worth: Points that have to be expected for expansion to be advised.
    """
    gain, narrow = (compare(its, others, METRIC, level=level) for level in (LEVEL, ONE_SIGMA))
    errors = 100 * (1 - fmean(float(p.hits.mean()) for p in others))
    error = max((narrow.high - narrow.low) / 2, 100 / gain.num_test)  # at least one image's weight
    expected, deviation = weighed(gain.mean, error, max(errors, LEAST_ERRORS))
    return Answer(expected >= worth, best, base, gain, expected, deviation)


def weighed(gain: float, error: float, errors: float) -> tuple[float, float]:
    """Mean and standard deviation of the gain, given the pilot and the prior, all in points.

    Args:
        gain: The pilot's.
        error: Its standard error, above 0.
        errors: Those of the arm without generated images, percent of the images.
    """
    pilot, prior = error**-2, (PRIOR_SPREAD * errors) ** -2
    total = pilot + prior
    mean = (pilot * gain + prior * PRIOR_SHARE * errors) / total
    return float(mean), float(total**-0.5)


def _means_of_augmentations(places: Sequence[Place], families: set[str]) -> dict[str, float]:
    """Mean accuracy of each augmentation over the arms that all augmentations have."""
    found: dict[str, dict[str, float]] = {family: {} for family in families}
    for place in places:
        if augmentation(place.arm) in families:
            rest = {k: v for k, v in place.arm.options.items() if k != "augment"}
            name = f"{place.arm.method} {place.arm.labels} {sorted(rest.items())}"
            found[augmentation(place.arm)][name] = place.accuracy
    common = set.intersection(*map(set, found.values()))
    return {family: fmean(own[n] for n in common or own) for family, own in found.items()}


def _certainty(predictions: Predictions) -> float:
    rows = range(len(predictions.labels))
    return float(predictions.probabilities[rows, predictions.labels].mean())
