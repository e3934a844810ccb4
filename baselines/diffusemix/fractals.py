"""Pictures that are blended in: attractors of random iterated function systems, or a folder's.

An iterated function system is a few maps x -> A x + b that bring all points nearer to each other.
The points that stay where they are as a set, under all maps together, are its attractor, a fractal.
"The chaos game" finds them: points that jump by maps drawn at random soon lie on it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator as RandomNumbers
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from baselines.diffusemix.config import fractal_records
from expansion.common.seeding import stable_seed
from expansion.diffusion.caching import RecentlyUsed
from expansion.images.tensors import BICUBIC, to_unit_tensor

NUM_FRACTALS = 1000  # of this project's making
MAX_PICTURES = 64  # that are kept in memory; 3 MB each at 512 pixels
WALKERS = 8192  # points that jump at the same time
FIRST_JUMPS = 30  # that are not drawn, as the points are not on the attractor yet
MAX_ATTEMPTS = 30  # systems that are drawn until one fills enough of the picture
SKETCH = 48  # side of the sketch in which that is measured, pixels
SKETCH_ROUNDS = 3  # jumps of every point that it takes
FILLED = (0.2, 0.7)  # share of its cells that hold a point


class Fractals(Protocol):
    """A numbered collection of pictures."""

    def __len__(self) -> int: ...

    def picture(self, number: int, size: int) -> Tensor:
        """A picture (3, size, size) in [0, 1]."""
        ...


class OwnFractals:
    """Fractals of this project's making; a number is a fractal's seed."""

    def __init__(self) -> None:
        self.pictures: RecentlyUsed[Tensor] = RecentlyUsed(MAX_PICTURES)

    def __len__(self) -> int:
        return NUM_FRACTALS

    def picture(self, number: int, size: int) -> Tensor:
        """A picture (3, size, size) in [0, 1]; see `Fractals`."""

        def make() -> Tensor:
            return torch.from_numpy(fractal(stable_seed("fractal", number), size)).movedim(-1, 0)

        return self.pictures.get((number, size), make)


class FolderFractals:
    """The images below a folder, squashed to squares, numbered in the order of their names."""

    def __init__(self, folder: str):
        self.records = fractal_records(folder)
        self.pictures: RecentlyUsed[Tensor] = RecentlyUsed(MAX_PICTURES)

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, number: int, size: int) -> Tensor:
        """A picture (3, size, size) in [0, 1]; see `Fractals`."""

        def read() -> Tensor:
            image = self.records[number].load()
            return to_unit_tensor(F.resize(image, [size, size], BICUBIC))

        return self.pictures.get((number, size), read)


def fractal(seed: int, size: int) -> np.ndarray:
    """A coloured fractal, (size, size, 3) float32 in [0, 1].

    Brightness is the logarithm of the number of points in a pixel, and colour tells by which maps
    they came there.

    Args:
        seed: Decides the fractal; at another size the same one is drawn finer.
        size: Side in pixels.
    """
    # A system that fills a fair part of its frame.
    numbers = np.random.default_rng(seed)
    for _ in range(MAX_ATTEMPTS):
        maps, shifts, odds = random_system(numbers)
        jumps = numbers.integers(2**63)
        points, _ = chaos_game(maps, shifts, odds, SKETCH_ROUNDS, np.random.default_rng(jumps))
        filled = (_counts(points, SKETCH) > 0).mean()
        if FILLED[0] <= filled <= FILLED[1]:
            break
    palette = numbers.uniform(0.15, 1, (len(maps), 3))
    background = numbers.uniform(0, 0.25, 3)
    # About four points for a pixel of the frame, at least as many as show the shape.
    rounds = max(10, 4 * size**2 // WALKERS)
    points, colours = chaos_game(maps, shifts, odds, rounds, np.random.default_rng(jumps), palette)
    counts = _counts(points, size)
    mean = _counts(points, size, colours) / np.maximum(counts, 1)[..., None]
    glow = np.log1p(counts)
    glow = np.clip(glow / np.quantile(glow[counts > 0], 0.95), 0, 1)[..., None]
    return (background + (mean - background) * glow).clip(0, 1).astype(np.float32)


def random_system(numbers: RandomNumbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps of an iterated function system whose sum of stretches makes no dust and no blob.

    Each A is a rotation, a stretch by two factors below 1, and another rotation. Systems look best
    where the sum over the maps of the larger factor and twice the smaller one is about
    (5.5 + K) / 2 (Anderson and Farrell, arXiv 2110.03091).

    Args:
        numbers: Draws the K maps, 2 to 6.

    Returns:
        A (K, 2, 2), b (K, 2), and the odds (K,) with which a point takes each map.
    """
    count = int(numbers.integers(2, 7))
    factors = np.sort(numbers.uniform(0.1, 1, (count, 2)), axis=1)[:, ::-1]
    wanted = numbers.uniform(5 + count, 6 + count) / 2
    for _ in range(20):  # the cap moves the sum, so it is scaled again
        factors = np.minimum(factors * wanted / (factors @ [1, 2]).sum(), 0.9)
    turns = _rotations(numbers.uniform(-np.pi, np.pi, count))
    other_turns = _rotations(numbers.uniform(-np.pi, np.pi, count))
    signs = numbers.choice([-1, 1], (count, 2))
    maps = turns @ (factors[..., None] * other_turns) * signs[:, None, :]
    odds = np.abs(np.linalg.det(maps)) + 0.02
    return maps, numbers.uniform(-1, 1, (count, 2)), odds / odds.sum()


def chaos_game(
    maps: np.ndarray,
    shifts: np.ndarray,
    odds: np.ndarray,
    rounds: int,
    numbers: RandomNumbers,
    palette: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Points on the attractor of a system.

    Args:
        maps: A, (K, 2, 2).
        shifts: b, (K, 2).
        odds: Of each map, (K,).
        rounds: How often all `WALKERS` points jump after they reached the attractor.
        numbers: Draws the maps of the jumps.
        palette: Colour of each map, (K, 3); a point moves half of the way to it with each jump.

    Returns:
        Points (rounds * WALKERS, 2) and their colours (rounds * WALKERS, 3), of zeros without a
        palette.
    """
    points, colours = np.zeros((WALKERS, 2)), np.zeros((WALKERS, 3))
    drawn_points, drawn_colours = [], []
    edges = odds.cumsum()[:-1]
    for jump in range(FIRST_JUMPS + rounds):
        chosen = np.searchsorted(edges, numbers.random(WALKERS))
        points = np.einsum("nij,nj->ni", maps[chosen], points) + shifts[chosen]
        if palette is not None:
            colours = (colours + palette[chosen]) / 2
        if jump >= FIRST_JUMPS:
            drawn_points.append(points)
            drawn_colours.append(colours)
    return np.concatenate(drawn_points), np.concatenate(drawn_colours)


def _counts(points: np.ndarray, size: int, weights: np.ndarray | None = None) -> np.ndarray:
    """How many points lie in each pixel, (size, size), or the sum of their weights (..., C).

    The frame leaves out the outermost hundredth of the points on each side, and keeps proportions.
    """
    low, high = np.quantile(points[: SKETCH_ROUNDS * WALKERS], [0.01, 0.99], axis=0)
    side = max((high - low).max(), 1e-6) * 1.1
    places = np.floor((points - (low + high) / 2) / side * size + size / 2).astype(int)
    inside = ((places >= 0) & (places < size)).all(axis=1)
    pixels = places[inside, 1] * size + places[inside, 0]
    if weights is None:
        return np.bincount(pixels, minlength=size**2).reshape(size, size)
    columns = [np.bincount(pixels, w, size**2) for w in weights[inside].T]
    return np.stack(columns, axis=-1).reshape(size, size, -1)


def _rotations(angles: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
