"""Tests how often the interval of `comparison.compare` holds the true gain, on simulated runs.

    python -m expansion.metrics.coverage
    python -m expansion.metrics.coverage --num_tables 2000 --metric balanced_accuracy

A simulated classifier is right about an image if level + image + image of this arm + seed + chance
is above 0. All but the level are normal, with variances that sum to 1; the images are the same for
both arms and all seeds. So its accuracy is Phi(level), and the true gain is known. With one seed it
is the gain of the two classifiers at hand. Columns: share of the simulations whose interval holds
the gain, and share called "cannot tell", which should be 95 % or more for equal accuracies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from expansion.common.option_parser import OptionParser
from expansion.common.tables import aligned
from expansion.metrics.comparison import compare
from expansion.metrics.predictions import Predictions

# Kind -> standard deviations of what all runs find in an image and of what one arm finds in it, per
# unit of the chance of a single run.
KINDS_OF_IMAGES = {"alike": (0.0, 0.0), "easy and hard": (1.5, 0.3), "arms disagree": (1.0, 1.0)}
NUM_CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        num_images: Number of test images.
        num_seeds: Number of runs of each arm.
        accuracies: True accuracies of arm and Original, 0 to 1.
        seed_spread: Standard deviation of the seeds, per unit of chance.
        images: A key of KINDS_OF_IMAGES.
        paired: Whether both arms have the same seeds.
    """

    num_images: int
    num_seeds: int
    accuracies: tuple[float, float]
    seed_spread: float
    images: str
    paired: bool = True


def draw(case: Case, rng: np.random.Generator) -> tuple[list, list, float]:
    """Simulate the runs of a case: predictions of arm and Original, and the true gain, percent."""
    common, own = KINDS_OF_IMAGES[case.images]
    shape = case.num_seeds, case.num_images
    fixed = 1 + common**2 + own**2
    labels = np.arange(case.num_images) % NUM_CLASSES
    shared = common * rng.normal(size=case.num_images)
    arms, truths = [], []
    for accuracy in case.accuracies:
        seeds = case.seed_spread * rng.normal(size=(case.num_seeds, 1))
        level = ndtri(accuracy) * np.sqrt(fixed + case.seed_spread**2) + seeds
        of_arm = own * rng.normal(size=case.num_images)
        right = level + shared + of_arm + rng.normal(size=shape) > 0
        arms.append([predictions_of(labels, each, rng) for each in right])
        truths.append(float(ndtr(level[0, 0] / np.sqrt(fixed))))
    first, second = truths if case.num_seeds == 1 else case.accuracies
    return arms[0], arms[1], 100 * (first - second)


def predictions_of(labels: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> Predictions:
    """Make predictions that are right for some images, and name any other class for the rest.

    Args:
        labels: Classes of the images, (N,).
        right: Which predictions are to be right, (N,) bool.
        rng: Draws the wrong classes and the confidences.
    """
    wrong = (labels + rng.integers(1, NUM_CLASSES, len(labels))) % NUM_CLASSES
    chosen = np.where(right, labels, wrong)
    # Confidences differ, so that runs which are right about the same images are not identical.
    confidence = rng.uniform(0.5, 1, (len(labels), 1))
    others = (1 - confidence) / (NUM_CLASSES - 1)
    rows = np.where(chosen[:, None] == np.arange(NUM_CLASSES), confidence, others)
    names = tuple(map(str, range(len(labels))))
    return Predictions(names, labels, rows.astype(np.float32), ("a", "b", "c"))


def coverage(case: Case, num_tables: int, metric: str = "last_accuracy") -> tuple[float, float]:
    """Shares, percent, of intervals that hold the true gain, and of verdicts "cannot tell".

    Args:
        case: What is simulated.
        num_tables: Number of simulations.
        metric: Name in METRICS; its true gain must be that of the accuracy.
    """
    rng = np.random.default_rng(0)
    held = open_ended = 0
    for _ in range(num_tables):
        arm, base, truth = draw(case, rng)
        gain = compare(arm, base, metric, case.paired)
        held += gain.low <= truth <= gain.high
        open_ended += gain.verdict == "cannot tell"
    return 100 * held / num_tables, 100 * open_ended / num_tables


def cases() -> list[Case]:
    """All combinations that the documents report."""
    pairs = ((0.5, 0.5), (0.6, 0.5), (0.8, 0.8), (0.9, 0.8), (0.95, 0.95), (0.97, 0.93))
    spreads = (0.0, 0.1, 0.3)
    combined = itertools.product((15, 60, 600), (1, 3, 5), pairs, spreads, KINDS_OF_IMAGES)
    return [Case(*each) for each in combined]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--num_tables", type=int, default=200, help="of each line (default: 200)")
    parser.add_argument(
        "--metric", default="last_accuracy", help="its true gain must be accuracy's"
    )
    parser.add_argument("--unpaired", action="store_true", help="arms of different seeds")
    options = parser.parse_args(arguments)
    lines = [
        ["images", "seeds", "accuracies", "seed spread", "kind", "held (%)", "cannot tell (%)"]
    ]
    for case in cases():
        case = Case(**{**vars(case), "paired": not options.unpaired})
        held, open_ended = coverage(case, options.num_tables, options.metric)
        facts = [case.num_images, case.num_seeds, "{:.2f} {:.2f}".format(*case.accuracies)]
        facts += [case.seed_spread, case.images, f"{held:.1f}", f"{open_ended:.1f}"]
        lines.append(list(map(str, facts)))
    print(aligned(lines))


if __name__ == "__main__":
    main()
