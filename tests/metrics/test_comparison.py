"""Gains, intervals and verdicts: by hand, at the borders, and against a known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from expansion.common.errors import InputError
from expansion.metrics.classification import METRICS
from expansion.metrics.comparison import compare, effective_images, image_covariance
from expansion.metrics.coverage import Case, coverage, draw
from expansion.metrics.predictions import Predictions

RNG = np.random.default_rng(0)


def run(hits: list[int], labels: list[int] | None = None, num_classes: int = 2) -> Predictions:
    """Predictions that are right where `hits` is 1, with a confidence of their own."""
    labels = np.array(labels or [0] * len(hits))
    chosen = np.where(np.array(hits) == 1, labels, (labels + 1) % num_classes)
    confidence = RNG.uniform(0.6, 0.9, len(hits))[:, None]
    others = (1 - confidence) / (num_classes - 1)
    rows = np.where(chosen[:, None] == np.arange(num_classes), confidence, others)
    names = tuple(f"{i}.png" for i in range(len(hits)))
    classes = tuple(map(str, range(num_classes)))
    return Predictions(names, labels, rows.astype(np.float32), classes)


# 40 images: the arm's seeds are right about the first 20, 10 and 20; the base about none.
THREE_SEEDS = [run(pattern * 10) for pattern in ([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0])]
NONE_RIGHT = [run([0] * 40) for _ in range(3)]


def test_an_interval_over_images_and_seeds_by_hand():
    """Gains of the seeds: 0.5, 0.25, 0.5.

    Q = (2 (1/12)^2 + (1/6)^2) / 2 / 3 = 0.0069444. Mean differences of the four kinds of images: 1,
    2/3, 0, 0: I = 7.5 / 39 / 40 = 0.0048077. Of single seeds: 10, 7.5 and 10 / 39 / 40, mean
    0.0058761: R = (0.0058761 - 0.0048077) / 2 = 0.0005342. A = 0.0042735.
    t(39) = 2.022691, t(2) = 4.302653: (A 2.022691 + Q 4.302653) / sqrt(A + Q) = 0.363722.
    """
    gain = compare(THREE_SEEDS, NONE_RIGHT, "last_accuracy")
    assert (gain.num_test, gain.num_seeds, gain.images_only) == (40, 3, False)
    assert gain.mean == pytest.approx(100 * 5 / 12)
    assert (gain.low, gain.high) == pytest.approx((5.2945, 78.0389), abs=1e-3)
    assert gain.verdict == "better"
    other_way = compare(NONE_RIGHT, THREE_SEEDS, "last_accuracy")
    assert (other_way.low, other_way.high) == pytest.approx((-gain.high, -gain.low))
    assert other_way.verdict == "worse"


def test_seeds_that_do_not_pair_are_two_samples():
    """The base's runs vary not at all, so that its sample adds nothing."""
    paired, unpaired = (
        compare(THREE_SEEDS, NONE_RIGHT, "last_accuracy", each) for each in (True, False)
    )
    assert (unpaired.low, unpaired.high) == pytest.approx((paired.low, paired.high))
    shifted = [run([1, 1, 1, 0] * 10), run([1, 1, 0, 0] * 10), run([1, 1, 1, 0] * 10)]
    paired, unpaired = (
        compare(shifted, THREE_SEEDS, "last_accuracy", each) for each in (True, False)
    )
    assert (paired.mean, unpaired.mean) == pytest.approx((25, 25))
    assert paired.verdict == "better" and unpaired.verdict == "cannot tell"


def test_one_run_borrows_the_variance_of_the_other_arms_runs():
    """v = 0.0208333 and w = 3 R = 0.0016026 of one run: Q = v (1/3 + 1), R = w (1/3 + 1).

    A = 0.0048077 - 0.0021368 = 0.0026709; half-width 0.71589.
    """
    gain = compare(THREE_SEEDS, NONE_RIGHT[:1], "last_accuracy")
    assert gain.low == pytest.approx(41.6667 - 71.589, abs=1e-2) and gain.high == 100
    assert not gain.images_only and gain.num_seeds == 1


def test_one_seed_gives_an_interval_over_test_images_and_says_so():
    """Differences 1 0 0 1 forty times over: variance 1/4 * 160/159 / 160, t(159) = 1.974996."""
    gain = compare([run([1, 0, 1, 1] * 40)], [run([0, 0, 1, 0] * 40)], "last_accuracy")
    assert gain.images_only and gain.num_seeds == 1
    assert gain.verdict == "cannot tell"  # about arms: other seeds are not known
    assert gain.low == pytest.approx(50 - 100 * 1.974996 * (0.25 / 159) ** 0.5, abs=1e-3)


def test_a_bootstrap_of_all_resamples_by_hand():
    """Three images: two of class 0 of which one is recognised, one of class 1, recognised.

    The 27 resamples by how often the third is drawn. Never: 8, with 0, 1/3 (3), 2/3 (3), 1; once:
    12, with 1/2 (3), 3/4 (6), 1 (3); twice: 6, with 1/2 (3), 1 (3); thrice: 1, with 1.
    Mean 18.5 / 27, mean square 14.541667 / 27.
    """
    three = run([1, 0, 1], [0, 0, 1])
    drawn = itertools.product(range(3), repeat=3)
    counts = np.array([[each.count(i) for i in range(3)] for each in drawn])
    metric = METRICS["balanced_accuracy"]
    variance = 14.541667 / 27 - (18.5 / 27) ** 2
    expected = pytest.approx(1e4 * variance * 3 / 2, rel=1e-6)
    assert image_covariance([three], metric, [counts]).item() == expected
    assert image_covariance([three], metric).item() == pytest.approx(expected.expected, rel=0.05)
    # Of a mean, all resamples come to the variance of the images over N.
    accuracy = METRICS["last_accuracy"]
    of_all = image_covariance([three], accuracy, [counts]).item()
    assert of_all == pytest.approx(image_covariance([three], accuracy).item())
    assert of_all == pytest.approx(1e4 * (1 / 3) / 3)


def test_identical_predictions_gain_exactly_nothing():
    gain = compare(THREE_SEEDS, THREE_SEEDS, "calibration_error")
    assert (gain.mean, gain.low, gain.high, gain.verdict) == (0, 0, 0, "cannot tell")


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_perfect_agreement_on_few_images_is_no_certainty(num_seeds):
    """Three in N, as of an event that was never seen."""
    arm, base = ([run([1] * 15) for _ in range(num_seeds)] for _ in range(2))
    gain = compare(arm, base, "last_accuracy")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0, -20, 20))
    # Class by class, with 13 and 2 images: 2 sqrt(15 / (1/13 + 1/2)) = 10.2 images count.
    labels = [0] * 13 + [1] * 2
    arm, base = ([run([1] * 15, labels) for _ in range(num_seeds)] for _ in range(2))
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        assert compare(arm, base, name).high == pytest.approx(300 / 10.198, abs=1e-2), name


def test_an_interval_is_never_narrower_than_one_image_makes_it():
    """Each seed is right about another image: the gains are equal, and so have no variance."""
    arm = [run([int(i == seed) for i in range(15)]) for seed in range(3)]
    gain = compare(arm, [run([0] * 15) for _ in range(3)], "last_accuracy")
    assert gain.mean == pytest.approx(100 / 15)
    assert gain.high - gain.mean == pytest.approx(100 * 2.144787 / 15, abs=1e-3)
    assert gain.verdict == "cannot tell"


def test_one_test_image_says_nothing():
    for num_seeds in (1, 3):
        arm, base = ([run([hit])] * num_seeds for hit in (1, 0))
        gain = compare(arm, base, "last_accuracy")
        assert (gain.low, gain.high, gain.verdict) == (-100, 100, "cannot tell")


def test_a_smaller_calibration_error_is_better():
    labels = [0, 1] * 100
    sure = [run([1, 1, 0, 1] * 50, labels) for _ in range(3)]
    rows = np.eye(2, dtype=np.float32)[sure[0].predicted]
    certain = [
        Predictions(r.file_names, r.labels, rows + np.float32(seed * 1e-7), r.class_names)
        for seed, r in enumerate(sure)
    ]
    gain = compare(sure, certain, "calibration_error")
    assert gain.mean < 0 and gain.verdict == "better"


def test_equal_classes_count_every_image():
    assert effective_images(np.array([0, 1, 2] * 5), True) == pytest.approx((15, 12))
    assert effective_images(np.array([0] * 14 + [1]), False) == (15, 14)


def test_the_same_runs_give_the_same_interval_again():
    rng = np.random.default_rng(3)
    arm, base, _ = draw(Case(60, 3, (0.9, 0.8), 0.1, "alike"), rng)
    for name in ("balanced_accuracy", "auroc", "calibration_error"):
        first = compare(arm, base, name)
        assert compare(arm, base, name) == first
        assert first.low < first.mean < first.high


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="other images"):
        compare([run([1, 0])], [run([1, 0, 1])], "last_accuracy")
    with pytest.raises(InputError, match="other images"):
        compare([run([1, 0], [0, 1])], [run([1, 0], [0, 0])], "last_accuracy")
    with pytest.raises(InputError, match="auroc is undefined"):
        compare([run([1, 0])], [run([0, 0])], "auroc")
    with pytest.raises(InputError, match="best_accuracy is not"):
        compare([run([1, 0])], [run([0, 0])], "best_accuracy")
    with pytest.raises(InputError, match="unknown metric 'acuracy'"):
        compare([run([1, 0])], [run([0, 0])], "acuracy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "metric"),
    [
        (Case(60, 1, (0.8, 0.8), 0.1, "alike"), "last_accuracy"),
        (Case(60, 3, (0.6, 0.5), 0.0, "easy and hard"), "last_accuracy"),
        (Case(60, 3, (0.8, 0.8), 0.3, "alike"), "last_accuracy"),
        (Case(600, 3, (0.97, 0.93), 0.3, "alike"), "last_accuracy"),
        (Case(600, 5, (0.5, 0.5), 0.1, "arms disagree"), "last_accuracy"),
        (Case(60, 3, (0.8, 0.8), 0.3, "alike", False), "last_accuracy"),
        (Case(60, 3, (0.9, 0.8), 0.1, "alike"), "balanced_accuracy"),
    ],
)
def test_nineteen_of_twenty_intervals_hold_the_truth(case, metric):
    num_tables = 300 if metric == "last_accuracy" else 100
    held, open_ended = coverage(case, num_tables, metric)
    slack = 300 * (0.05 * 0.95 / num_tables) ** 0.5  # three standard errors
    assert 95 - slack <= held <= 97.5 + slack / 2
    if case.accuracies[0] == case.accuracies[1]:
        assert open_ended >= 95 - slack


def test_the_coverage_command_prints_a_line_for_every_case(capsys, monkeypatch):
    from expansion.metrics import coverage as command

    monkeypatch.setattr(command, "cases", lambda: [Case(15, 3, (0.5, 0.5), 0.1, "alike")])
    command.main(["--num_tables", "4"])
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "images" and line.split()[:2] == ["15", "3"]
