"""How a set of images is distributed, against real ones: over all, and class by class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from expansion.common.seeding import stable_seed
from expansion.measures import kernels
from expansion.measures.frechet import Moments, frechet_of_moments, moments
from expansion.measures.kernels import check_samples, gaussian, unit_length
from expansion.measures.neighbours import coverage_and_density

NEIGHBOURS = 5  # k of coverage and density
MOST_COMPARED = 10_000  # images on either side of coverage, whose cost grows with their square
PERMUTATIONS = 1000
MOST_PERMUTED = 1000  # images on either side of the p-value, whose memory grows with their square
LEAST_OF_CLASS = 20  # images on either side, for figures of a class


@dataclass(frozen=True)
class Settings:
    """What the figures depend on beside the images and the network.

    Attributes:
        seed: Of every random choice.
        paper_images: Images of a set in the papers' columns; None: no such columns.
    """

    seed: int = 0
    paper_images: int | None = None


class Sample(NamedTuple):
    """Features (M, D) of images and their labels (M,)."""

    features: np.ndarray
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> Sample:
        return Sample(self.features[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Figures:
    """Of a set, or of one class of it; NaN where there are too few images.

    Attributes:
        p_value: That no less a KID comes of chance where every class keeps its number of images;
            NaN for classes.
        num_compared: Images on either side of coverage and density.
    """

    kid: float
    kid_error: float
    p_value: float
    cmmd: float
    cmmd_error: float
    coverage: float
    density: float
    num_compared: int


class Reference:
    """Real images that sets are compared with; what depends on them alone is computed once."""

    def __init__(self, sample: Sample, settings: Settings):
        self.sample, self.settings = sample, settings

    @cached_property
    def unit(self) -> np.ndarray:
        """Features of unit length."""
        return unit_length(self.sample.features)

    @cached_property
    def kid_sums(self) -> np.ndarray:
        return kernels.sums_within(self.sample.features, kernels.polynomial)

    @cached_property
    def cmmd_sums(self) -> np.ndarray:
        return kernels.sums_within(self.unit, gaussian(kernels.CMMD_SIGMA))

    @cached_property
    def moments(self) -> Moments:
        return moments(self.sample.features)

    @cached_property
    def bandwidth(self) -> float:
        """Of the papers' MMD: the median distance of real images, one for all rows of a table."""
        return kernels.median_bandwidth(self.unit, self.generator("bandwidth"))

    def generator(self, *purpose: object) -> np.random.Generator:
        """Random numbers for one purpose, the same for every set."""
        return np.random.default_rng(stable_seed("measures", self.settings.seed, *purpose))

    def of_class(self, label: int) -> Reference:
        """The images of one class."""
        return Reference(self.sample.take(self.sample.labels == label), self.settings)


def compare(sample: Sample, reference: Reference, with_p_value: bool = True) -> Figures:
    """Figures of a sample against the reference.

    Raises:
        InputError: See `kernels.check_samples`.
    """
    x, y = sample.features, reference.sample.features
    check_samples(x, y)
    kid = kernels.kid(x, y, reference.kid_sums)
    cmmd = kernels.cmmd(unit_length(x), reference.unit, reference.cmmd_sums)
    p_value = math.nan
    if with_p_value:
        one, two = (_some(s, MOST_PERMUTED, reference, "test") for s in (sample, reference.sample))
        p_value = kernels.permutation_p_value(
            one.features,
            two.features,
            kernels.polynomial,
            PERMUTATIONS,
            reference.generator("permutations"),
            (one.labels, two.labels),
        )
    count = min(len(x), len(y), MOST_COMPARED)
    coverage = density = math.nan
    if count > NEIGHBOURS:
        one, two = (_some(s, count, reference, "balls") for s in (sample, reference.sample))
        coverage, density = coverage_and_density(one.features, two.features, NEIGHBOURS)
    return Figures(*kid, p_value, *cmmd, coverage, density, count)


def compare_classes(sample: Sample, reference: Reference) -> dict[int, Figures]:
    """Figures of the classes that have `LEAST_OF_CLASS` images on either side, by label."""
    found = {}
    for label in np.unique(sample.labels).tolist():
        own, real = sample.take(sample.labels == label), reference.of_class(label)
        if min(len(own.labels), len(real.sample.labels)) >= LEAST_OF_CLASS:
            found[label] = compare(own, real, with_p_value=False)
    return found


@dataclass(frozen=True)
class PaperFigures:
    """The papers' columns.

    Attributes:
        frechet: FID, if the features are Inception's.
        mmd: Root of the unbiased squared MMD, 0 where that is negative.
        num_images: Of the set.
    """

    frechet: float
    mmd: float
    mmd2: float
    bandwidth: float
    num_images: int


def paper_figures(sample: Sample, reference: Reference) -> PaperFigures | None:
    """Of `paper_images` of the set against all images of the reference; None of a smaller set.

    The MMD's kernel is Gaussian, on features of unit length; the papers state neither kernel nor
    features, so their numbers cannot be matched.
    """
    count = reference.settings.paper_images
    if count is None or len(sample.labels) < count:
        return None
    chosen = _some(sample, count, reference, "paper").features
    kernel = gaussian(reference.bandwidth)
    mmd2 = kernels.unbiased_mmd2(unit_length(chosen), reference.unit, kernel).value
    frechet = frechet_of_moments(moments(chosen), reference.moments)
    return PaperFigures(frechet, math.sqrt(max(mmd2, 0.0)), mmd2, reference.bandwidth, count)


def _some(sample: Sample, most: int, reference: Reference, purpose: str) -> Sample:
    """At most so many images, chosen at random, in their order."""
    count = len(sample.labels)
    if count <= most:
        return sample
    chosen = reference.generator(purpose, count).choice(count, most, replace=False)
    return sample.take(np.sort(chosen))
