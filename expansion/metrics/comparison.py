"""Is an arm better than its Original? The gain, its 95 % interval and a verdict.

The gain is the mean over the runs (seeds) of the arm minus that of the Original, in a metric of the
test set. Both the images and the seeds are samples, and they are crossed: every run sees the same
images. In studies of diagnosis, readers and cases are crossed in the same way (Obuchowski &
Rockette 1995; Hillis 2007). The model is

    difference of image i in seed s = gain + image_i + seed_s + interaction_si
    variance of the mean difference = image / N + seed / S + interaction / (N S).

The usual bootstrap goes wrong here. Over 3 seeds it has (S-1)/S of their variance, and a normal
distribution's quantiles where Student's t with 2 degrees of freedom is needed (1.96 instead of
4.30). If it draws images and seeds independently, it counts the interaction three times; and no
bootstrap is right for crossed samples (McCullagh 2000; Owen 2007). So the parts of the variance are
estimated and added:

    Q  variance of the seeds' gains, over S; contains seed / S and interaction / (N S)
    I  variance of the mean gain over resampled images; contains image / N and interaction / (N S)
    R  interaction / (N S): the variance of single seeds over resampled images that is not in I
    A = max(I - R, 0), which is image / N.

The variance is A + Q. Its quantile is the mean of t(N - 1) and t(S - 1), weighted by A and Q
(Cochran & Cox 1957). With Satterthwaite's degrees of freedom, estimated from the same three
numbers, the coverage would fall to 92 % at S = 3. `expansion.metrics.coverage` tries all this out.

- If both arms have the same seeds, the seeds are paired. Otherwise they are two samples: Q and R
  are sums, with Welch's degrees of freedom; an arm of one run borrows the variance of the other's.
- With one run in each arm, the interval covers the test images alone (I), for these two
  classifiers, and the verdict on the arms is "cannot tell". Otherwise, on 600 images and with seeds
  that spread by 4 points, a third of equal arms would be called better or worse.
- The variance over images of a mean (accuracy) is the variance of the images' scores over N, the
  limit of a bootstrap with many resamples. For other metrics it is the variance over NUM_RESAMPLES
  resamples of the images, the same for all arms and runs (paired), times N / (N - 1).
- A metric that weighs classes alike (`by_class`) has fewer effective images than N if classes are
  unequal: C sqrt(n / sum of 1/n_c), from the effect of one image drawn at random. Its degrees of
  freedom are Welch's for C means.
- With few images, the half-width is at least t(N - 1) / N, the weight of a single image. If the
  arms differ on no image in any seed, it is 3 / N, the rule of three (Hanley & Lippman-Hand 1983).
- Identical predictions give gain 0 and interval [0, 0].

There is no correction for many arms: of 20 arms that equal their Original, one is on average called
better or worse.

Cochran & Cox, Experimental Designs, 1957, 4.14. Hanley & Lippman-Hand, JAMA 249, 1983. Hillis,
Statistics in Medicine 26, 2007. McCullagh, Bernoulli 6, 2000. Obuchowski & Rockette, Communications
in Statistics 24, 1995. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from expansion.common.errors import InputError, unknown_name
from expansion.metrics.classification import METRICS, Metric
from expansion.metrics.predictions import Predictions

NUM_RESAMPLES = 2000  # gives a half-width a standard error of 1.6 %
FEWEST_RESAMPLES = 200  # for large test sets, to save minutes; a standard error of 5 %
MOST_NUMBERS = 5e7  # largest resamples * images * classes before the number is reduced
CHUNK = 4_000_000  # number of weights in memory at once
SEED = 0
LEVEL = 0.95
MOST_TIMES = 1e5  # largest multiple of the test images that `_more_images` considers
NOTHING = 1e-9  # a variance below this, percent squared, is due to rounding
CANNOT_TELL = "cannot tell"
_known: weakref.WeakKeyDictionary[Predictions, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Gain:
    """What an arm gains over its Original, in the metric's unit.

    Attributes:
        mean: The gain.
        low: Lower end of its 95 % interval.
        high: Upper end.
        verdict: "better", "worse" or "cannot tell".
        num_test: Number of test images.
        num_seeds: Number of runs of the arm that has fewer.
        images_only: Whether both arms have one run, so that the interval ignores other seeds.
        num_needed: If the verdict is "cannot tell", the number of test images with which this gain
            would be told from 0, all else equal; None if no number would, because of the seeds.
    """

    mean: float
    low: float
    high: float
    verdict: str
    num_test: int
    num_seeds: int
    images_only: bool = False
    num_needed: int | None = None


def compare(
    arm: Sequence[Predictions],
    base: Sequence[Predictions],
    metric: str,
    paired: bool | None = None,
    level: float = LEVEL,
) -> Gain:
    """The gain of `arm` over `base`, with its interval and a verdict.

    Args:
        arm: Predictions of the arm's runs, in the order of their seeds.
        base: Predictions of the Original's runs, in the order of their seeds.
        metric: Name in METRICS of a metric that is computed from predictions.
        paired: Whether run i of both has the same seed; default: if both have as many runs.
        level: Share of such intervals that are to hold the true gain.

    Raises:
        InputError: The test images differ, or the metric cannot be computed from these predictions.
    """
    measure, first = _measure(metric), base[0]
    if not all(first.same_images(each) for each in (*arm, *base)):
        raise InputError("the runs were tested on other images or classes")
    # The metric of every run; identical predictions need no statistics.
    paired = len(arm) == len(base) and paired is not False
    values = np.array([float(measure(each)) for each in (*arm, *base)])
    if np.isnan(values).any():
        raise InputError(f"{metric} is undefined: the test set lacks images of some kind")
    num_seeds, num_test = min(len(arm), len(base)), len(first.labels)
    images_only = max(len(arm), len(base)) == 1
    if len(arm) == len(base) and all(
        np.array_equal(a.probabilities, b.probabilities) for a, b in zip(arm, base, strict=True)
    ):
        return Gain(0.0, 0.0, 0.0, CANNOT_TELL, num_test, num_seeds, images_only)
    # The gain as a weighted sum of independent values: of pairs of runs, or of all runs.
    covariance = image_covariance([*arm, *base], METRICS[metric])
    signs = np.repeat([1.0, -1.0], [len(arm), len(base)])
    samples = [signs > 0, signs < 0]
    if paired:
        pairs = np.hstack([np.eye(len(arm)), -np.eye(len(arm))])
        values, covariance = pairs @ values, pairs @ covariance @ pairs.T
        signs = np.ones(len(arm))
        samples = [signs > 0]
    contrast = sum(signs * of / of.sum() for of in samples)
    size, freedom = effective_images(first.labels, METRICS[metric].by_class)
    # Its interval, and the verdict.
    gain = float(contrast @ values)
    half, needed = 200.0, None  # one image says nothing
    if num_test > 1:
        parts = _parts(values, covariance, contrast, samples)
        half = _half_width(parts, size, freedom, level)
        more = _more_images(parts, size, freedom, abs(gain), level)
        needed = math.ceil(num_test * more) if 1 < more < math.inf and not images_only else None
    low, high = max(gain - half, -100.0), min(gain + half, 100.0)
    sign = 1 if METRICS[metric].better == "higher" else -1
    known = (low > 0 or high < 0) and not images_only
    verdict = CANNOT_TELL if not known else "better" if sign * gain > 0 else "worse"
    return Gain(gain, low, high, verdict, num_test, num_seeds, images_only, needed)


def _measure(metric: str) -> Callable[..., float]:
    if metric not in METRICS:
        raise unknown_name("metric", metric, list(METRICS))
    measure = METRICS[metric].of_predictions
    if measure is None:
        raise InputError(f"{metric} is not a matter of the predictions after the last step")
    return measure


def image_covariance(
    runs: Sequence[Predictions], metric: Metric, resamples: Iterable[np.ndarray] | None = None
) -> np.ndarray:
    """The covariance (K, K) of the runs' metric over test sets.

    Args:
        runs: Predictions of K runs on the same N images.
        metric: A metric that is computed from predictions.
        resamples: Arrays (B, N) that say how often each image occurs in a resample; default: they
            are drawn.
    """
    num_images = len(runs[0].labels)
    if metric.of_predictions is METRICS["last_accuracy"].of_predictions and resamples is None:
        scores = 100.0 * np.stack([each.hits for each in runs])
        return np.atleast_2d(np.cov(scores, ddof=0)) / max(num_images - 1, 1)
    if resamples is None:
        values = _drawn_values(runs, metric)
    else:
        values = _values(runs, metric, resamples)
    values = values[~np.isnan(values).any(axis=1)]  # resamples without images of some kind
    covariance = np.atleast_2d(np.cov(values.T, ddof=0))
    return covariance * num_images / max(num_images - 1, 1)


def _values(
    runs: Sequence[Predictions], metric: Metric, resamples: Iterable[np.ndarray]
) -> np.ndarray:
    """The metric of every run on every resample, (B, K)."""
    parts = [[metric.of_predictions(each, counts) for each in runs] for counts in resamples]
    return np.concatenate([np.stack(part, axis=-1) for part in parts])


def _drawn_values(runs: Sequence[Predictions], metric: Metric) -> np.ndarray:
    """`_values` on the drawn resamples, kept for each run: an Original is compared many times."""
    new = [each for each in runs if metric.title not in _known.setdefault(each, {})]
    if new:
        values = _values(new, metric, draw_resamples(*runs[0].probabilities.shape))
        for each, column in zip(new, values.T, strict=True):
            _known[each][metric.title] = column
    return np.stack([_known[each][metric.title] for each in runs], axis=-1)


def draw_resamples(num_images: int, num_classes: int) -> Iterable[np.ndarray]:
    """Draw resamples of the images, always the same ones.

    Yields:
        Arrays (B, num_images) that say how often each image occurs in each resample.
    """
    wanted = min(NUM_RESAMPLES, MOST_NUMBERS / (num_images * num_classes))
    left = max(FEWEST_RESAMPLES, int(wanted))
    rng = np.random.default_rng(SEED)
    shares = np.full(num_images, 1 / num_images)
    while left:
        size = min(left, max(1, CHUNK // num_images))
        yield rng.multinomial(num_images, shares, size=size)
        left -= size


def effective_images(labels: np.ndarray, by_class: bool) -> tuple[float, float]:
    """The effective number of test images, and their degrees of freedom.

    Args:
        labels: Classes of the test images, (N,).
        by_class: Whether the metric weighs all classes alike.
    """
    if not by_class:
        return len(labels), max(len(labels) - 1, 1)
    counts = np.unique(labels, return_counts=True)[1]
    size = len(counts) * math.sqrt(len(labels) / (1 / counts).sum())
    freedoms = np.maximum(counts - 1, 1)
    return size, (1 / counts).sum() ** 2 / (1 / counts**2 / freedoms).sum()


@dataclass(frozen=True)
class _Parts:
    """Parts of the variance of a gain: I, A and Q of the module's text, and the freedom of Q."""

    resampled: float
    images: float
    seeds: float
    seed_freedom: float


def _parts(
    values: np.ndarray, covariance: np.ndarray, contrast: np.ndarray, samples: list[np.ndarray]
) -> _Parts:
    """Divide the variance of a gain into its parts.

    Args:
        values: The metric of the runs, or the gains of paired runs, (K,).
        covariance: Their covariance over test images, (K, K).
        contrast: Factors, (K,), by which the values add up to the gain.
        samples: One mask (K,) for each sample of seeds, which says which values belong to it.
    """
    resampled = float(contrast @ covariance @ contrast)
    sizes = [int(of.sum()) for of in samples]
    known = [of for of, size in zip(samples, sizes, strict=True) if size > 1]
    if not known:
        return _Parts(resampled, resampled, 0.0, 1.0)
    seeds = interaction = squares = 0.0
    for of, size in zip(samples, sizes, strict=True):
        of = of if size > 1 else known[0]  # one run borrows the other arm's variance
        runs = int(of.sum())
        inner = covariance[np.ix_(of, of)]
        common = (inner.sum() - np.trace(inner)) / (runs * (runs - 1))
        seeds += values[of].var(ddof=1) / size
        interaction += max(np.trace(inner) / runs - common, 0.0) / size
        squares += (values[of].var(ddof=1) / size) ** 2 / (runs - 1)
    freedoms = [int(of.sum()) - 1 for of in known]
    # One estimate, used twice, has its own degrees of freedom; Welch's are for two.
    freedom = seeds**2 / squares if squares and len(known) == len(samples) else min(freedoms)
    images = max(resampled - float(interaction), 0.0)
    return _Parts(resampled, images, float(seeds), float(freedom))


def _half_width(parts: _Parts, size: float, freedom: float, level: float) -> float:
    """Half of the interval's width, percent; see the module's text."""
    tail = (1 + level) / 2
    of_images, of_seeds = stdtrit(freedom, tail), stdtrit(parts.seed_freedom, tail)
    if max(parts.resampled, parts.seeds) < NOTHING:
        return 100 * 3 / size
    weighted = parts.images * of_images + parts.seeds * of_seeds
    half = weighted / math.sqrt(max(parts.images + parts.seeds, NOTHING))
    return max(float(half), 100 * float(of_images) / size)


def _more_images(parts: _Parts, size: float, freedom: float, gain: float, level: float) -> float:
    """How many times the test images would make the half-width less than `gain`; maybe infinity.

    The parts of the variance that are due to the images, and to their interaction with the seeds,
    shrink as there are more images; the part that is due to the seeds alone does not.
    """
    interaction = min(parts.resampled - parts.images, parts.seeds)

    def suffices(times: float) -> bool:
        shrunk = _Parts(
            parts.resampled / times,
            parts.images / times,
            parts.seeds - interaction + interaction / times,
            parts.seed_freedom,
        )
        return _half_width(shrunk, size * times, freedom * times, level) < gain

    if suffices(1.0):
        return 1.0
    if not suffices(MOST_TIMES):
        return math.inf
    low, high = 1.0, MOST_TIMES
    while high > low * 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
