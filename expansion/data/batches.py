"""Endless shuffled batches in which every sample's randomness is a function of (seed, position).

Position p of the stream always holds the same image with the same augmentation. So two runs agree,
however many workers load the images and wherever a run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from expansion.common.seeding import stable_seed
from expansion.images.pixel_cache import PixelCache
from expansion.images.records import ImageRecord

EVAL_BATCH = 256  # images of a batch of `InOrder`


def stream_indices(num_items: int, start: int, count: int, seed: int) -> list[int]:
    """Items at positions start .. start+count-1 of an endless stream of shuffled passes.

    Args:
        num_items: Number of items in a pass; each occurs once per pass.
        start: First position, from 0.
        count: Number of positions.
        seed: Decides the order; pass e is shuffled by (seed, e).
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
    """A batch sampler that gives lists of (index, seed of the sample).

    Args:
        num_items: Number of images of the dataset.
        batch_sizes: Size of every batch of the whole run, in order.
        seed: Decides order and augmentation.
        first: Number of the first batch to give, from 0; a resumed run begins later.
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
            indices = self._indices(start, size)
            samples = [
                (index, stable_seed("sample", self.seed, start + i))
                for i, index in enumerate(indices)
            ]
            yield self._of_process(samples, start)
            start += size

    def __len__(self) -> int:
        return len(self.batch_sizes) - self.first

    def _indices(self, start: int, count: int) -> list[int]:
        """Items at positions start .. start+count-1, which are those of one batch."""
        return stream_indices(self.num_items, start, count, self.seed)

    def _of_process(self, samples: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
        return samples[self.rank :: self.world_size]


class FixedShare(StreamBatches):
    """Batches of which one part of the images, such as the real ones, holds a fixed share.

    Either part is shuffled on its own, pass after pass. Of the first n samples of the run the part
    has n times its share, rounded; so a batch departs from its share by less than one image, and
    the departures do not add up.

    Args:
        part: Numbers of the images that hold the share.
        others: Numbers of the other images; neither may be empty.
        share: Between 0 and 1.
        batch_sizes: As in `StreamBatches`, and so are further arguments.
    """

    def __init__(
        self,
        part: Sequence[int],
        others: Sequence[int],
        share: float,
        batch_sizes: Sequence[int],
        **options: Any,
    ):
        super().__init__(len(part) + len(others), batch_sizes, **options)
        self.part, self.others, self.share = part, others, share

    def _indices(self, start: int, count: int) -> list[int]:
        first, end = (math.floor(self.share * n + 0.5) for n in (start, start + count))
        streams = (
            ("part", self.part, first, end - first),
            ("others", self.others, start - first, count - (end - first)),
        )
        return [
            items[number]
            for name, items, begin, length in streams
            for number in stream_indices(
                len(items), begin, length, stable_seed("share", name, self.seed)
            )
        ]

    def _of_process(self, samples: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
        # Dealt out part by part, so that each process has its share; then shuffled, because MixUp
        # mixes neighbours.
        mine = super()._of_process(samples, start)
        shuffled = np.random.default_rng(stable_seed("within", self.seed, start, self.rank))
        return [mine[i] for i in shuffled.permutation(len(mine))]


class StandIns(StreamBatches):
    """Batches in which another image, such as a generated one, may stand in for the drawn one.

    Args:
        stand_ins: Number of every image that is drawn -> numbers of those that may stand in for it.
        probability: That one of them does, each as likely as the others; 0 to 1.
        batch_sizes: As in `StreamBatches`, and so are further arguments.
    """

    def __init__(
        self,
        stand_ins: Mapping[int, Sequence[int]],
        probability: float,
        batch_sizes: Sequence[int],
        **options: Any,
    ):
        super().__init__(len(stand_ins), batch_sizes, **options)
        self.stand_ins, self.probability = list(stand_ins.items()), probability

    def _indices(self, start: int, count: int) -> list[int]:
        drawn = super()._indices(start, count)
        return [self._shown(number, start + i) for i, number in enumerate(drawn)]

    def _shown(self, number: int, position: int) -> int:
        """What is shown of the image of that number at a position of the stream."""
        index, others = self.stand_ins[number]
        draw = np.random.default_rng(stable_seed("stand-in", self.seed, position))
        if not others or draw.random() >= self.probability:
            return index
        return others[int(draw.integers(len(others)))]


class SeededImages(Dataset):
    """A dataset of transformed images and labels, addressed by (index, seed of the sample).

    Args:
        records: The images.
        transform: Turns a PIL image into what the model takes. It may draw from torch's global
            generator, which is seeded for the sample.
        cache: Keeps images as the first, fixed steps of the transform make them; default: files are
            read again every time.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        transform: Callable[[Image.Image], Any],
        cache: PixelCache | None = None,
    ):
        self.records = list(records)
        self.transform = transform
        self.cache = cache
        self.places = cache.reserve(self.records) if cache else []

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Any, int]:
        index, seed = sample
        record = self.records[index]
        image = self.cache.load(record, self.places[index]) if self.cache else record.load()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return self.transform(image), record.label

    def all_decoded(self) -> bool:
        """Whether no file has to be read any more."""
        return self.cache is not None and all(map(self.cache.holds, self.places))


def stream_loader(
    dataset: Dataset, batches: StreamBatches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Make a DataLoader for the batches of a whole run, so that its workers are started only once.

    Args:
        dataset: Addressed by (index, seed of the sample), as `SeededImages` is.
        batches: Which samples to load.
        num_workers: Number of processes that load; each prepares two batches ahead.
        pin_memory: Put the tensors into page-locked memory, from which a GPU copies faster.
    """
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory
    )


class InOrder:
    """Gives batches of (transformed images, labels) with every image once, in order.

    Args:
        images: The dataset; may be iterated over any number of times.
        num_workers: Number of processes that load as long as images have to be decoded.
        pin_memory: As in `stream_loader`.
    """

    def __init__(self, images: SeededImages, num_workers: int, pin_memory: bool = False):
        self.images, self.num_workers, self.pin_memory = images, num_workers, pin_memory

    def __iter__(self) -> Iterator[list[Any]]:
        samples = [(index, 0) for index in range(len(self.images))]
        starts = range(0, len(samples), EVAL_BATCH)
        yield from DataLoader(
            self.images,
            batch_sampler=[samples[start : start + EVAL_BATCH] for start in starts],
            num_workers=0 if self.images.all_decoded() else self.num_workers,
            pin_memory=self.pin_memory,
        )
