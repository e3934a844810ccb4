"""Sampling within the memory there is: smaller parts after a shortage, and how large a batch fits."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from expansion.errors import InputError
from expansion.sampler import Batch, Sampler, Samples

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 64  # beyond it speed no longer grows
PIXELS_ON_CPU = 8 * 512 * 512  # of a batch where memory cannot be asked for
SHARE_OF_MEMORY = 0.9
PROBES = (1, 2, 4)  # batch sizes that are tried; the first one only warms up


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in message or "not enough memory" in message
    )


class FittingSampler:
    """Samples batches whole, or in parts once that exceeded the memory.

    Parts change an image by rounding only. The sampler is first asked to use less memory.
    """

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.largest: int | None = None  # images at a time; None: no shortage was met

    def sample(self, batch: Batch, generators: Callable[[], list[Generator]]) -> Samples:
        """`Sampler.sample` of the batch.

        Args:
            generators: Makes fresh generators, so that a repetition sees the same noise.

        Raises:
            InputError: One image alone does not fit.
        """
        while True:
            size = min(self.largest or len(batch), len(batch))
            samples = self._in_parts(batch, generators(), size)
            if samples is not None:
                return samples
            # Here, outside the handler, the failed attempt's tensors are no longer referred to.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.sampler.save_memory():
                logger.warning("out of memory with %d images; computing more, keeping less", size)
                continue
            if size == 1:
                raise InputError(
                    "one image alone exceeds the memory; give a smaller --resolution, --dtype "
                    "float16 or bfloat16, or a larger device"
                )
            self.largest = (size + 1) // 2
            logger.warning(
                "out of memory with %d images; going on with %d at a time", size, self.largest
            )

    def _in_parts(self, batch: Batch, generators: list[Generator], size: int) -> Samples | None:
        """None if memory ran out."""
        try:
            parts = [
                self.sampler.sample(batch.part(i, i + size), generators[i : i + size])
                for i in range(0, len(batch), size)
            ]
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            return None
        return parts[0] if len(parts) == 1 else _joined(parts)


def fitting_batch_size(sampler: Sampler, make_batch: Callable[[int], Batch], limit: int) -> int:
    """The largest power of two that fits, at most `limit` and `MAX_BATCH_SIZE`.

    On a GPU from the peak memory of small batches, which grows linearly; elsewhere from the number
    of pixels.

    Args:
        make_batch: A batch of so many variants.
        limit: Images there are.
    """
    limit = max(1, min(limit, MAX_BATCH_SIZE))
    device = sampler.pipeline.device
    if device.type != "cuda":
        height, width = make_batch(1).images.shape[-2:]
        return power_of_two(min(limit, PIXELS_ON_CPU // (height * width)))
    peaks = {}
    for size in PROBES:
        if size > limit:
            return limit
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        fitting = FittingSampler(sampler)
        batch = make_batch(size)
        fitting.sample(batch, lambda: [Generator("cpu").manual_seed(i) for i in range(len(batch))])
        if fitting.largest is not None:
            return fitting.largest
        peaks[size] = torch.cuda.max_memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    available = SHARE_OF_MEMORY * (free + torch.cuda.memory_reserved(device))
    return power_of_two(min(limit, extrapolated(peaks, available)))


def extrapolated(peaks: dict[int, int], available: float) -> int:
    """Images whose peak memory is `available` bytes, by the line through the two largest probes."""
    (small, low), (large, high) = sorted(peaks.items())[-2:]
    slope = (high - low) / (large - small)
    if slope <= 0:
        return MAX_BATCH_SIZE
    return max(1, int(small + (available - low) / slope))


def power_of_two(number: int) -> int:
    """The largest one that is at most `number`; 1 for less."""
    return 1 << (max(1, number).bit_length() - 1)


def _joined(parts: list[Samples]) -> Samples:
    details = {name: torch.cat([part.details[name] for part in parts]) for name in parts[0].details}
    images: Tensor = torch.cat([part.images for part in parts])
    return Samples(images, details)
