"""What a pilot's predictions say: places, who goes on, and whether expansion pays off."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from expansion.advise.outcome import Outcome
from expansion.advise.rounds import (
    PRIOR_SHARE,
    PRIOR_SPREAD,
    Answer,
    Place,
    answer,
    augmentation,
    counts_of_rounds,
    standing,
    survivors,
    weighed,
)
from expansion.common.errors import InputError
from expansion.metrics.comparison import compare
from expansion.metrics.predictions import Predictions, joined
from expansion.study.settings import Arm

PLAIN = Arm(None, "seed", {})
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
    places = standing([A, B, C], given)
    assert [place.arm for place in places] == [B, C, A]
    assert [place.accuracy for place in places] == [62.5, 50.0, 37.5]


def test_of_equal_accuracies_the_more_certain_leads_and_then_the_one_listed_first():
    same = [1, 1, 0, 1]
    given = {0: [predictions(same, 0.6)], 1: [predictions(same, 0.8)], 2: [predictions(same, 0.8)]}
    places = standing([A, B, C], given)
    assert [place.arm for place in places] == [B, C, A]
    assert places[2].certainty == pytest.approx((0.6 * 3 + 0.4) / 4)
    assert [place.arm for place in standing([C, B, A], given)] == [B, A, C]


def places_of(accuracies: dict[str, tuple[float, float]]) -> list[Place]:
    """Places of arms by name ("" is real images alone), without and with RandAugment."""
    places = [
        Place(Arm(name or None, "seed", options), accuracy, 0.5)
        for name, pair in accuracies.items()
        for options, accuracy in zip(({}, {"augment": "randaugment"}), pair, strict=True)
    ]
    return sorted(places, key=lambda place: -place.accuracy)


def test_the_first_round_decides_on_the_augmentation_by_the_mean_over_all_methods():
    # The best arm of all has no RandAugment, but it is the only one that is better without.
    places = places_of({"": (60, 70), "a": (90, 80), "b": (70, 75), "c": (60, 79)})
    kept = survivors(places, is_first=True)
    assert {augmentation(arm) for arm in kept} == {"randaugment"}
    assert [arm.method for arm in kept] == ["a", "c", "b", None]
    assert len(survivors(places_of({"": (80, 70), "a": (90, 80)}), is_first=True)) == 2


def test_real_images_go_on_in_the_augmentation_that_suits_them_best():
    kept = survivors(places_of({"": (85, 80), "a": (60, 84)}), is_first=True)
    assert [(arm.method, augmentation(arm)) for arm in kept] == [
        (None, "default"), ("a", "randaugment"), (None, "randaugment")
    ]  # fmt: skip


def test_after_that_the_better_half_goes_on_beside_the_real_images_alone():
    places = places_of({"": (0, 70), "a": (0, 80), "b": (0, 75), "c": (0, 79)})
    places = [place for place in places if place.arm.options]
    assert [arm.method for arm in survivors(places, is_first=False)] == ["a", "c", None]
    # One augmentation alone leaves nothing to decide in the first round either.
    assert survivors(places, is_first=True) == survivors(places, is_first=False)
    plain = Place(Arm(None, "seed", {}), 90, 0.5)
    assert plain.arm in survivors([plain, *places], is_first=True)


def test_the_numbers_of_arms_of_the_rounds_are_known_beforehand():
    both = [place.arm for place in places_of({"": (1, 2), **dict.fromkeys("abcde", (1, 2))})]
    assert counts_of_rounds(both, 3) == [10, 5, 3] and counts_of_rounds(both, 1) == [10]
    one = [arm for arm in both if not arm.options]
    assert counts_of_rounds(one, 3) == [5, 3, 2]


def advised(its: list[Predictions], others: list[Predictions]) -> Answer:
    return answer(A, its, PLAIN, others, worth=1.0)


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_a_clear_gain_is_advised_and_a_loss_is_not(repeats):
    good, poor = (
        [drawn(share, s + int(90 * share)) for s in range(repeats)] for share in (0.9, 0.5)
    )
    found = advised(good, poor)
    assert found.expand and found.best == A and found.base == PLAIN
    assert found.interval[0] > 0 and found.probability > 0.975
    found = advised(poor, good)
    assert not found.expand and found.gain.mean < 0


def test_many_images_without_a_difference_are_no_reason_to_expand():
    same = [drawn(0.7, s, size=2000) for s in (1, 2)]
    found = advised(same, same)
    assert not found.expand and found.gain.mean == 0 and abs(found.expected) < 0.05


def test_where_there_are_hardly_any_errors_there_is_nothing_to_gain():
    base, arm = [1] * 97 + [0] * 3, [1] * 98 + [0] * 2
    found = advised([predictions(arm)], [predictions(base)])
    assert found.gain.mean == 1 and not found.expand and 0 < found.expected < 1


def test_on_few_images_a_small_loss_is_outweighed_by_what_other_sets_gained():
    base, arm = [1] * 12 + [0] * 8, [1] * 8 + [0] * 4 + [1] * 3 + [0] * 5  # 3 better, 4 worse
    found = advised([predictions(arm)], [predictions(base)])
    assert found.gain.mean == -5 and found.expand and found.probability < 0.95


def test_pilot_and_prior_are_weighed_as_two_normal_distributions():
    gain, error, errors = 4.0, 6.0, 30.0
    grid = np.linspace(-100, 100, 200_001)
    density = stats.norm.pdf(gain, grid, error)
    density *= stats.norm.pdf(grid, PRIOR_SHARE * errors, PRIOR_SPREAD * errors)
    density /= density.sum()
    mean = float((grid * density).sum())
    deviation = float(np.sqrt((grid**2 * density).sum() - mean**2))
    assert weighed(gain, error, errors) == pytest.approx((mean, deviation), rel=1e-4)


def test_how_much_is_worth_it_is_the_users_to_say():
    its, others = [drawn(0.8, s) for s in (1, 2)], [drawn(0.7, s) for s in (1, 2)]
    expected = advised(its, others).expected
    assert expected > 1
    assert not answer(A, its, PLAIN, others, worth=expected + 0.1).expand
    assert answer(A, its, PLAIN, others, worth=expected - 0.1).expand


def said(right: int, of_others: int, worth: float = 1.0) -> Outcome:
    """An outcome by the numbers of images of 100 that both arms recognise."""
    its, others = (predictions([1] * n + [0] * (100 - n)) for n in (right, of_others))
    pilot = SimpleNamespace(title=lambda arm: str(arm.method), config=SimpleNamespace(worth=worth))
    return Outcome(pilot, [], [], answer(A, [its], PLAIN, [others], worth), "")


def test_the_answer_in_words_names_its_reason():
    assert said(80, 60).headline == "Expand: a."
    assert said(80, 60, worth=50).headline == ("Do not expand: less than 50 points are expected.")
    assert said(99, 99).headline == "Do not expand: None is as good here, or nearly so."
    assert "no gain" not in said(80, 60).expected
    assert said(60, 60).expected.endswith("The pilot itself shows no gain.")


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
