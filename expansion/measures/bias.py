"""How far off the measures are at small numbers of images: two samples of one law, many times.

    python -m expansion.measures.bias
    python -m expansion.measures.bias --num_draws 50 --sizes 20 200

Features are normal numbers whose spread falls as those of networks do: the i-th has the variance
1 / i. The last column is what a small shift of one sample adds, in the mean of draws at the largest
size. A measure serves at a number of images if its mean there is far below what the shift adds, and
its spread too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from expansion.common.option_parser import OptionParser
from expansion.common.tables import aligned
from expansion.measures.distributions import NEIGHBOURS
from expansion.measures.frechet import frechet_distance
from expansion.measures.kernels import (
    CMMD_SIGMA,
    cmmd,
    gaussian,
    kid,
    sums_between,
    sums_within,
    unit_length,
)
from expansion.measures.neighbours import coverage_and_density

DIM = 512
SHIFT = 0.67  # length of the shift: FID of it is its square, 0.45


def biased_cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """The V-statistic of the published code, which counts each image as its own neighbour."""
    kernel = gaussian(CMMD_SIGMA)
    m, n = len(x), len(y)
    within = [(sums_within(part, kernel).sum() + len(part)) / len(part) ** 2 for part in (x, y)]
    return sum(within) - 2 * sums_between(x, y, kernel)[0].sum() / (m * n)


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "FID": frechet_distance,
    "KID x1e3, unbiased": lambda x, y: 1000 * kid(x, y).value,
    "CMMD x1e3, as published": lambda x, y: 1000 * biased_cmmd(unit_length(x), unit_length(y)),
    "CMMD x1e3, unbiased": lambda x, y: 1000 * cmmd(unit_length(x), unit_length(y)).value,
    "coverage": lambda x, y: coverage_and_density(x, y, NEIGHBOURS)[0],
    "density": lambda x, y: coverage_and_density(x, y, NEIGHBOURS)[1],
}


def draws(size: int, count: int, shift: float, seed: int) -> dict[str, np.ndarray]:
    """Every measure of `count` pairs of samples of `size` images."""
    generator = np.random.default_rng([seed, size])
    spread = 1 / np.sqrt(np.arange(1, DIM + 1))
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(count):
        x, y = (generator.normal(size=(size, DIM)) * spread for _ in range(2))
        x[:, 0] += shift
        for name, measure in MEASURES.items():
            found[name].append(measure(x, y))
    return {name: np.array(values) for name, values in found.items()}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = OptionParser(prog="python -m expansion.measures.bias", description=__doc__)
    parser.add_argument(
        "--num_draws", type=int, default=200, help="pairs of samples (default: 200)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[20, 50, 200], help="images (default: 20 50 200)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    one_law = {size: draws(size, options.num_draws, 0.0, options.seed) for size in options.sizes}
    largest = max(options.sizes)
    shifted = draws(largest, options.num_draws, SHIFT, options.seed)
    rows = [["N of each set", *map(str, options.sizes), "the shift adds"]]
    for name in MEASURES:
        cells = [f"{of[name].mean():.3f} +- {of[name].std():.3f}" for of in one_law.values()]
        added = shifted[name].mean() - one_law[largest][name].mean()
        rows.append([name, *cells, f"{added:.3f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
