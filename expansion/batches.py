"""Endless shuffled batches in which every sample's randomness is a function of (seed, position).

Two runs agree however many workers load the images and wherever a run was interrupted: position p
of the stream always holds the same image with the same augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from expansion.image_datasets import ImageRecord
from expansion.seeding import stable_seed


def stream_indices(num_items: int, start: int, count: int, seed: int) -> list[int]:
    """Items at positions start .. start+count-1 of an endless stream of shuffled passes.

    Args:
        num_items: Items in one pass; each occurs once per pass.
        start: First position, from 0.
        count: Number of positions.
        seed: Pass e is shuffled by (seed, e).
    """
    indices: list[int] = []
    position = start
    while len(indices) < count:
        number, offset = divmod(position, num_items)
        order = np.random.default_rng(stable_seed("pass", seed, number)).permutation(num_items)
        taken = order[offset : offset + count - len(indices)]
        indices.extend(int(i) for i in taken)
        position += len(taken)
    return indices


class StreamBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler: lists of (index, seed of the sample).

    Args:
        num_items: Size of the dataset.
        batch_sizes: Size of every batch of the whole run, in order.
        first: Batches before this one are left out (a resumed run).
        seed: Decides order and augmentation.
        rank: This process takes samples rank, rank + world_size, ... of each batch.
        world_size: Number of data-parallel processes.
    """

    def __init__(
        self,
        num_items: int,
        batch_sizes: Sequence[int],
        *,
        seed: int,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_items = num_items
        self.batch_sizes = batch_sizes
        self.first = first
        self.seed = seed
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start = sum(self.batch_sizes[: self.first])
        for size in self.batch_sizes[self.first :]:
            indices = stream_indices(self.num_items, start, size, self.seed)
            samples = [
                (index, stable_seed("sample", self.seed, start + i))
                for i, index in enumerate(indices)
            ]
            start += size
            yield samples[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.batch_sizes) - self.first


class SeededImages(Dataset):
    """Transformed images and labels; the transform sees a random state set by the sample's seed.

    Args:
        records: What to load.
        transform: From a PIL image to what the model eats; may draw from torch's global generator.
        keep_decoded: Hold decoded images in memory (for small sets).
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        transform: Callable[[Image.Image], Any],
        keep_decoded: bool = False,
    ):
        self.records = list(records)
        self.transform = transform
        self.decoded: dict[int, Image.Image] | None = {} if keep_decoded else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Any, int]:
        index, seed = sample
        image = self._image(index)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return self.transform(image), self.records[index].label

    def _image(self, index: int) -> Image.Image:
        if self.decoded is None:
            return self.records[index].load()
        if index not in self.decoded:
            self.decoded[index] = self.records[index].load()
        return self.decoded[index]


def stream_loader(
    dataset: Dataset, batches: StreamBatches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """DataLoader over `batches`; with workers, two batches per worker are prepared ahead."""
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory
    )
