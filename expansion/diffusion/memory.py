"""Sampling within the available memory: smaller parts after a shortage, and fitting batch sizes."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from diffusers import ModelMixin
from torch import Generator, Tensor

from expansion.common.errors import InputError
from expansion.common.sharding import make_units
from expansion.diffusion.families import Pipeline
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 64  # images; larger batches are no faster
PIXELS_ON_CPU = 8 * 512 * 512  # in a batch; on a CPU a shortage cannot be tried safely
ALWAYS_TRIED = 8  # images; larger batches are tried only for a large set, which has
IMAGES_PER_TRIAL = 32  # images for each image of the batch that is tried


class CanSample(Protocol):
    """What this module needs of a sampler; the class `Sampler` itself imports this module."""

    pipeline: Pipeline
    config: SamplerConfig

    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples: ...

    def save_memory(self) -> bool: ...


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in message or "not enough memory" in message
    )


class FittingSampler:
    """Samples whole batches, or smaller parts once a batch exceeded the memory.

    Before batches are divided, the sampler is asked to use less memory. Dividing a batch changes an
    image by rounding only, since groups stay whole.
    """

    def __init__(self, sampler: CanSample):
        self.sampler = sampler
        self.largest: int | None = None  # images at a time; None: no shortage was met

    def sample(self, batch: Batch, generators: Callable[[], list[Generator]]) -> Samples:
        """Sample a batch with the sampler, as often as a shortage of memory makes necessary.

        Args:
            batch: Real images and the variants asked of them.
            generators: Makes fresh generators, so that a repetition sees the same noise.

        Raises:
            InputError: A single image, or group of variants, does not fit into the memory.
        """
        smallest = max(map(len, batch.groups(self.sampler.config.variants_per_group)))
        while True:
            size = min(self.largest or len(batch), len(batch))
            samples = _in_parts(self.sampler, batch, generators(), size)
            if samples is not None:
                return samples
            release()
            if self.sampler.save_memory():
                logger.warning("out of memory with %d images; computing more, keeping less", size)
                continue
            if size <= smallest:
                raise InputError(
                    f"{size} of the images that are computed together exceed the memory; give a "
                    "smaller --resolution, --dtype float16 or bfloat16, or a larger device"
                    if size > 1
                    else "one image alone exceeds the memory; give a smaller --resolution, --dtype "
                    "float16 or bfloat16, or a larger device"
                )
            self.largest = max(smallest, (size + 1) // 2)
            logger.warning(
                "out of memory with %d images; going on with %d at a time", size, self.largest
            )


def fitting_batch_size(
    sampler: CanSample, make_batch: Callable[[int], Batch], num_images: int
) -> int:
    """The largest power of two, up to `MAX_BATCH_SIZE`, that fits into the memory as a batch.

    On a GPU it is found by trying, which costs at most a sixteenth of a large set's work. Elsewhere
    it follows from the number of pixels, since a system whose memory runs out becomes slow before
    it says so.

    Args:
        sampler: Samples the batches that are tried.
        make_batch: Makes a batch of a given number of variants.
        num_images: Number of images of the whole set.
    """
    limit = min(num_images, MAX_BATCH_SIZE)
    if sampler.pipeline.device.type != "cuda":
        height, width = make_batch(1).images.shape[-2:]
        size = power_of_two(min(limit, PIXELS_ON_CPU // (height * width)))
        return max(size, sampler.config.variants_per_group)
    limit = min(limit, max(ALWAYS_TRIED, num_images // IMAGES_PER_TRIAL))
    size = 1
    while 2 * size <= limit and _fits(sampler, make_batch(2 * size)):
        size *= 2
    return max(size, sampler.config.variants_per_group)


@contextmanager
def recomputing(*networks: ModelMixin) -> Iterator[None]:
    """Inside, the networks recompute activations for gradients: less memory, more time."""
    switched = [network for network in networks if not network.is_gradient_checkpointing]
    for network in switched:
        network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for network in switched:
            network.disable_gradient_checkpointing()


def release() -> None:
    """Free what a failed attempt left; works only where nothing refers to its error any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _fits(sampler: CanSample, batch: Batch) -> bool:
    generators = [Generator().manual_seed(i) for i in range(len(batch))]
    fits = _in_parts(sampler, batch, generators, len(batch)) is not None
    release()
    return fits


def _in_parts(
    sampler: CanSample, batch: Batch, generators: list[Generator], size: int
) -> Samples | None:
    """Sample a batch in parts of `size` images; None if memory ran out."""
    try:
        group_of = batch.group_of(sampler.config.variants_per_group)
        parts = [
            sampler.sample(batch.part(rows[0], rows[-1] + 1), generators[rows[0] : rows[-1] + 1])
            for rows in make_units(range(len(batch)), size, group_of)
        ]
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return None
    return parts[0] if len(parts) == 1 else _joined(parts)


def power_of_two(number: int) -> int:
    """The largest power of two that is at most `number`; 1 for numbers below 1."""
    return 1 << (max(1, number).bit_length() - 1)


def _joined(parts: list[Samples]) -> Samples:
    details = {name: torch.cat([part.details[name] for part in parts]) for name in parts[0].details}
    images: Tensor = torch.cat([part.images for part in parts])
    return Samples(images, details)
