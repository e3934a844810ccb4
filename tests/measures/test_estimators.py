"""Estimators of a generated set: against brute force, Gaussians with known distance, and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import linalg, stats

from expansion.common.errors import InputError
from expansion.measures import distributions, kernels
from expansion.measures.distributions import (
    LEAST_OF_CLASS,
    Reference,
    Sample,
    Settings,
    compare,
    compare_classes,
    paper_figures,
)
from expansion.measures.frechet import frechet_distance
from expansion.measures.kernels import cmmd, gaussian, kid, permutation_p_value, polynomial
from expansion.measures.neighbours import coverage_and_density, nearest, squared_radii


def normal(count: int, dim: int = 4, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count, dim]).normal(shift, 1.0, (count, dim))


def brute_mmd2(x: np.ndarray, y: np.ndarray, kernel) -> float:
    """By the definition, pair by pair."""

    def of(a, b):
        return float(kernel(a[None], b[None])[0, 0])

    m, n = len(x), len(y)
    within_x = sum(of(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    within_y = sum(of(y[i], y[j]) for i in range(n) for j in range(n) if i != j)
    between = sum(of(a, b) for a in x for b in y)
    return within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2 * between / (m * n)


@pytest.mark.parametrize("kernel", [polynomial, gaussian(1.5)], ids=["polynomial", "gaussian"])
def test_the_distance_is_the_definition_s_whatever_the_blocks(kernel, monkeypatch):
    x, y = normal(7), normal(11, shift=0.5)
    expected = brute_mmd2(x, y, kernel)
    for block in (2048, 3, 1):
        monkeypatch.setattr(kernels, "BLOCK", block)
        assert kernels.unbiased_mmd2(x, y, kernel).value == pytest.approx(expected, rel=1e-12)


def test_the_jackknife_leaves_out_one_image_at_a_time():
    x, y = normal(6), normal(5, shift=0.5)
    variance = 0.0
    for first in (True, False):
        side = x if first else y
        left = [np.delete(side, i, axis=0) for i in range(len(side))]
        values = [kid(part, y).value if first else kid(x, part).value for part in left]
        variance += (len(side) - 1) * np.var(values)
    assert kid(x, y).error == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_kid_of_wide_samples_is_near_the_distance_of_their_gaussians():
    """E (x y / D + 1)^3 of normal x, y by Wick's theorem."""
    dim, shift = 4, 0.6

    def expected(a: float, b: float) -> float:
        """Of means (a, ..., a) and (b, ..., b) and unit covariance."""
        s1 = dim * a * b
        s2 = s1**2 + dim * (a * a + b * b + 1)
        s3 = s1**3 + 3 * s1 * dim * (a * a + b * b) + 3 * s1 * dim + 6 * s1
        return 1 + 3 * s1 / dim + 3 * s2 / dim**2 + s3 / dim**3

    truth = expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)
    found = kid(normal(4000, dim), normal(4000, dim, shift, seed=1))
    assert found.value == pytest.approx(truth, abs=4 * found.error)
    assert found.error < 0.1 * truth


def test_a_gaussian_kernel_s_distance_is_near_that_of_gaussians():
    """(1 + 2 / s^2)^(-D/2) (1 - exp(-|d|^2 / (2 (s^2 + 2)))) 2, of unit covariances."""
    dim, shift, sigma = 4, 0.6, 1.5
    width = sigma**2 + 2
    scale = (sigma**2 / width) ** (dim / 2)
    truth = 2 * scale * (1 - math.exp(-dim * shift**2 / (2 * width)))
    found = kernels.unbiased_mmd2(
        normal(4000, dim), normal(4000, dim, shift, seed=1), gaussian(sigma)
    )
    assert found.value == pytest.approx(truth, abs=4 * found.error)


def test_unbiased_distances_of_one_law_are_zero_on_average_and_fid_is_not():
    """A small form of `python -m expansion.measures.bias`."""
    draws = [(normal(20, 32, seed=2 * i), normal(20, 32, seed=2 * i + 1)) for i in range(200)]
    for distance in (kid, cmmd):
        values = [distance(x, y).value for x, y in draws]
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
        assert 0.3 < np.mean(np.array(values) < 0) < 0.7
    assert np.mean([frechet_distance(x, y) for x, y in draws]) > 10


def test_p_values_are_uniform_where_both_sets_are_of_one_law():
    values = [
        permutation_p_value(
            normal(12, 8, seed=2 * i),
            normal(20, 8, seed=2 * i + 1),
            polynomial,
            99,
            np.random.default_rng(i),
        )
        for i in range(300)
    ]
    counts = np.histogram(values, bins=10, range=(0.005, 1.005))[0]
    assert stats.chisquare(counts).pvalue > 0.01
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_p_values_are_uniform_where_every_class_has_a_chosen_number_of_images():
    """Classes far apart in equal numbers: divisions at random would give p near 1."""
    labels = np.repeat([0, 1], 8)
    far = 3.0 * labels[:, None]

    def p_value(i: int, given: tuple | None) -> float:
        x, y = normal(16, 8, seed=2 * i) + far, normal(16, 8, seed=2 * i + 1) + far
        return permutation_p_value(x, y, polynomial, 99, np.random.default_rng(i), given)

    assert min(p_value(i, None) for i in range(20)) > 0.3
    values = [p_value(i, (labels, labels)) for i in range(300)]
    counts = np.histogram(values, bins=10, range=(0.005, 1.005))[0]
    assert stats.chisquare(counts).pvalue > 0.01


def test_p_values_are_small_where_the_laws_differ():
    x, y = normal(30, 8), normal(30, 8, shift=0.7, seed=1)
    assert permutation_p_value(x, y, polynomial, 199, np.random.default_rng(0)) == 1 / 200


def test_the_permutation_s_statistic_is_kid():
    """Two images a side have three divisions: p counts those with no smaller a KID."""
    x, y = normal(2), normal(2, shift=1.0, seed=1)
    pooled = np.concatenate([x, y])
    pairs = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    values = [kid(pooled[a], pooled[b]).value for a, b in pairs]
    share = np.mean(np.array(values) >= values[0] - 1e-12)
    found = permutation_p_value(x, y, polynomial, 3000, np.random.default_rng(0))
    assert found == pytest.approx(share, abs=0.03)


def test_frechet_distance_is_the_definition_s():
    """Two dimensions, covariances diag(4, 1) and diag(1, 9), means 3 apart: by hand 9 + 1 + 4."""
    base = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3 / 4)
    x = base * [2, 1]
    y = base * [1, 3] + [3, 0]
    assert frechet_distance(x, y) == pytest.approx(9 + (2 - 1) ** 2 + (1 - 3) ** 2)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [10, 200])
def test_frechet_distance_is_that_of_the_square_root_of_the_product(count):
    from scipy.linalg import sqrtm

    x, y = normal(count, 24), normal(count + 5, 24, 0.3, seed=1)
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm((one + 1e-12 * np.eye(24)) @ (two + 1e-12 * np.eye(24))).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-3)


def test_frechet_distance_does_not_depend_on_the_blocks(monkeypatch):
    x, y = normal(50, 8), normal(40, 8, 0.3, seed=1)
    whole = frechet_distance(x, y)
    monkeypatch.setattr(kernels, "BLOCK", 7)
    assert frechet_distance(x, y) == pytest.approx(whole, rel=1e-10)


def test_coverage_and_density_are_counted_ball_by_ball(monkeypatch):
    x, y, k = normal(30, shift=0.3), normal(30, seed=1), 5
    monkeypatch.setattr(kernels, "BLOCK", 7)
    distances = np.linalg.norm(y[:, None] - y, axis=2)
    radii = np.sort(distances, axis=1)[:, k]  # the first is the distance to itself
    inside = np.linalg.norm(y[:, None] - x, axis=2) <= radii[:, None]
    assert np.sqrt(squared_radii(y, k)) == pytest.approx(radii)
    expected = inside.any(axis=1).mean(), inside.sum() / (k * len(x))
    assert coverage_and_density(x, y, k) == pytest.approx(expected)


def test_coverage_of_one_law_is_what_the_paper_says_and_falls_with_collapse():
    """1 - 2^-5 of equal samples (Naeem et al., Lemma 3)."""
    found = [
        coverage_and_density(normal(400, seed=2 * i), normal(400, seed=2 * i + 1), 5)
        for i in range(5)
    ]
    assert np.mean(found, axis=0) == pytest.approx((1 - 2**-5, 1), abs=0.03)
    collapsed = np.repeat(normal(1), 400, axis=0)
    assert coverage_and_density(collapsed, normal(400), 5)[0] < 0.1


def test_the_nearest_image_is_found_and_a_barred_one_is_not(monkeypatch):
    x, y = normal(9), normal(13, seed=1)
    distances = np.linalg.norm(x[:, None] - y, axis=2)
    first = distances.argmin(axis=1)
    for block in (2048, 4):
        monkeypatch.setattr(kernels, "BLOCK", block)
        assert nearest(x, y).index.tolist() == first.tolist()
        assert nearest(x, y).distance == pytest.approx(distances.min(axis=1))
        second = nearest(x, y, first)
        assert second.index.tolist() == np.argsort(distances, axis=1)[:, 1].tolist()
    alone = nearest(x[:1], x[:1], np.array([0]))
    assert alone.index.tolist() == [-1] and np.isnan(alone.distance[0])


def test_a_copy_has_distance_zero_in_spite_of_rounding():
    y = 1000 + normal(20).astype(np.float32)
    assert nearest(y[:3], y).distance.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (normal(1), normal(5), "of 1 image is not defined"),
        (normal(5), normal(0), "of 0 images is not defined"),
        (np.full((3, 4), np.nan), normal(5), "not finite"),
        (normal(5, 3), normal(5, 4), "two networks"),
    ],
)
def test_what_has_no_distance_is_refused_in_a_line(x, y, words):
    for distance in (kid, frechet_distance, lambda *both: coverage_and_density(*both, 2)):
        with pytest.raises(InputError, match=words):
            distance(x, y)


def test_classes_of_too_few_images_have_no_figures():
    labels = np.repeat([0, 1], [LEAST_OF_CLASS, LEAST_OF_CLASS - 1])
    sample = Sample(normal(len(labels)), labels)
    reference = Reference(Sample(normal(60), np.arange(60) % 2), Settings())
    assert list(compare_classes(sample, reference)) == [0]


def test_coverage_is_at_equal_numbers_and_the_same_every_time():
    reference = Reference(Sample(normal(40), np.zeros(40)), Settings())
    sample = Sample(normal(300, seed=1), np.zeros(300))
    found = compare(sample, reference)
    assert found.num_compared == 40
    again = compare(sample, Reference(reference.sample, Settings()))
    assert found == again


def test_few_images_have_a_distance_and_no_coverage():
    reference = Reference(Sample(normal(40), np.zeros(40)), Settings())
    found = compare(Sample(normal(2, seed=1), np.zeros(2)), reference)
    assert math.isfinite(found.kid) and math.isnan(found.coverage)


def test_the_papers_columns_are_of_the_number_of_images_that_is_named():
    reference = Reference(Sample(normal(40), np.zeros(40)), Settings(paper_images=25))
    assert paper_figures(Sample(normal(24), np.zeros(24)), reference) is None
    found = paper_figures(Sample(normal(30, seed=1), np.zeros(30)), reference)
    assert found.num_images == 25 and found.frechet > 0
    assert found.mmd == math.sqrt(max(found.mmd2, 0))


def test_the_papers_columns_draw_their_images_once_for_a_seed(monkeypatch):
    """As FID-3K: the drawn images against all of the reference, by covariances and a root."""
    real = Sample(normal(40), np.zeros(40))
    sample = Sample(normal(90, seed=1) * 1.5, np.zeros(90))
    drawn = []
    plain = distributions.moments
    monkeypatch.setattr(distributions, "moments", lambda f: drawn.append(f) or plain(f))
    found = [
        paper_figures(sample, Reference(real, Settings(seed, paper_images=30)))
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] and found[0] != found[2]
    chosen = drawn[0]
    rows = {tuple(row) for row in sample.features}
    assert len(chosen) == len(np.unique(chosen, axis=0)) == 30
    assert all(tuple(row) in rows for row in chosen)
    covariances = [np.cov(part.T) for part in (chosen, real.features)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((chosen.mean(0) - real.features.mean(0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found[0].frechet == pytest.approx(expected, rel=1e-9)
