"""What a pilot's predictions say: places, who goes on, and whether expansion pays off."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from expansion.advise.rounds import LEAST_PROBABILITY, answer, standing
from expansion.common.errors import InputError
from expansion.metrics.comparison import compare
from expansion.metrics.predictions import Predictions, joined
from expansion.study.config import Arm

PLAIN, AUGMENTED = Arm(None, "seed", {}), Arm(None, "seed", {"augment": "randaugment"})
A, B, C = (Arm(name, "seed", {}) for name in "abc")


def predictions(hits: list[int], certainty: float = 0.9, prefix: str = "") -> Predictions:
    """Of two classes in turn; whether each image is right, with how much certainty."""
    labels = np.arange(len(hits)) % 2
    right = np.where(hits, certainty, 1 - certainty)
    rows = np.where(labels[:, None] == np.arange(2), right[:, None], 1 - right[:, None])
    names = tuple(f"{prefix}{i:04d}.png" for i in range(len(hits)))
    return Predictions(names, labels, rows.astype(np.float32), ("ant", "bee"))


def drawn(share: float, seed: int, size: int = 200) -> Predictions:
    return predictions(list(np.random.default_rng(seed).random(size) < share))


def test_the_places_are_by_the_mean_of_the_repeats():
    given = {
        0: [predictions([1, 0, 0, 0]), predictions([1, 1, 0, 0])],  # 25 and 50 %
        1: [predictions([1, 1, 1, 0]), predictions([1, 1, 0, 0])],  # 75 and 50 %
        2: [predictions([1, 1, 0, 0]), predictions([1, 1, 0, 0])],
    }
    places = standing([A, B, C], given, 2)
    assert [place.arm for place in places] == [B, C, A]
    assert [place.accuracy for place in places] == [62.5, 50.0, 37.5]
    assert [place.goes_on for place in places] == [True, True, False]


def test_of_equal_accuracies_the_more_certain_leads_and_then_the_one_listed_first():
    same = [1, 1, 0, 1]
    given = {0: [predictions(same, 0.6)], 1: [predictions(same, 0.8)], 2: [predictions(same, 0.8)]}
    places = standing([A, B, C], given, 1)
    assert [place.arm for place in places] == [B, C, A]
    assert places[2].certainty == pytest.approx((0.6 * 3 + 0.4) / 4)
    assert [place.arm for place in standing([C, B, A], given, 1)] == [B, A, C]


def test_a_clear_gain_is_advised():
    found = answer(
        A, [drawn(0.9, s) for s in (1, 2, 3)], PLAIN, [drawn(0.5, s) for s in (11, 12, 13)]
    )
    assert found.expand and found.best == A and found.base == PLAIN
    assert found.gain.low > 0 and found.probability > 0.975


def test_a_clear_gain_is_advised_with_two_repeats_as_well():
    """Student's t with one degree of freedom must not be taken for one with many."""
    found = answer(A, [drawn(0.9, s) for s in (1, 2)], PLAIN, [drawn(0.5, s) for s in (11, 12)])
    assert found.expand and found.probability > LEAST_PROBABILITY


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_no_gain_or_a_loss_is_not(repeats):
    same = [drawn(0.7, s) for s in range(repeats)]
    found = answer(A, same, PLAIN, same)
    assert not found.expand and found.gain.mean == 0 and found.probability == 0.5
    worse = [drawn(0.4, s + 10) for s in range(repeats)]
    found = answer(A, worse, PLAIN, same)
    assert not found.expand and found.gain.mean < 0 and found.probability < 0.1
    assert answer(A, same, PLAIN, worse).probability == pytest.approx(1 - found.probability)


def test_a_small_gain_that_may_be_chance_is_not_advised():
    base, arm = [1] * 20 + [0] * 20, [1] * 17 + [0] * 3 + [1] * 4 + [0] * 16  # 4 better, 3 worse
    found = answer(A, [predictions(arm)], PLAIN, [predictions(base)])
    assert found.gain.mean == 2.5 and 0.5 <= found.probability < LEAST_PROBABILITY
    assert not found.expand


def test_the_probability_of_one_repeat_is_that_of_students_t_over_the_images():
    arm, base = drawn(0.75, 1), drawn(0.6, 2)
    difference = 100.0 * (arm.hits.astype(float) - base.hits)
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
    expected = stats.t.cdf(t, len(difference) - 1)
    assert 0.9 < expected < 0.9999
    found = answer(A, [arm], PLAIN, [base])
    assert found.probability == pytest.approx(expected, abs=1e-3)


def test_the_probability_fits_the_interval():
    for share in (0.72, 0.76, 0.8):
        arm, base = [drawn(share, s) for s in (1, 2, 3)], [drawn(0.7, s) for s in (4, 5, 6)]
        found = answer(A, arm, PLAIN, base)
        assert (found.probability > 0.975) == (found.gain.low > 0)


def test_an_interval_of_a_lower_level_is_narrower_and_the_usual_one_is_of_95_percent():
    arm, base = [drawn(0.8, s) for s in (1, 2)], [drawn(0.7, s) for s in (4, 5)]
    widths = [
        gain.high - gain.low
        for gain in (compare(arm, base, "last_accuracy", level=p) for p in (0.5, 0.8, 0.95))
    ]
    assert widths[0] < widths[1] < widths[2]
    usual = compare(arm, base, "last_accuracy")
    assert usual.high - usual.low == widths[2]


def test_the_parts_of_a_cross_validation_become_predictions_of_all_images_in_the_order_of_names():
    first, second = predictions([1, 0, 1], prefix="b"), predictions([0, 1], prefix="a")
    whole = joined([first, second])
    assert whole.file_names == ("a0000.png", "a0001.png", "b0000.png", "b0001.png", "b0002.png")
    assert list(whole.hits) == [False, True, True, False, True]
    assert list(whole.labels) == [0, 1, 0, 1, 0] and whole.class_names == ("ant", "bee")
    assert joined([second, first]).same_images(whole)


def test_parts_that_share_an_image_or_differ_in_classes_are_no_cross_validation():
    with pytest.raises(InputError, match="an image is in two parts"):
        joined([predictions([1, 0]), predictions([1])])
    other = predictions([1, 0], prefix="b")
    other = Predictions(other.file_names, other.labels, other.probabilities, ("ant", "cat"))
    with pytest.raises(InputError, match="have other classes"):
        joined([predictions([1, 0]), other])
