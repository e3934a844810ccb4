"""The loop from real images to files: units of work through a sampler into a writer."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from expansion.common.phases import phase
from expansion.diffusion.memory import FittingSampler
from expansion.diffusion.sampler import Sampler
from expansion.diffusion.samples import Batch, Samples
from expansion.diffusion.variants import (
    Drawing,
    eight_bit,
    generators_of,
    make_batch,
    sample_finite,
)
from expansion.images.variants import Variant
from expansion.store.writer import ExpansionWriter

logger = logging.getLogger(__name__)

Unit = Sequence[Variant]  # variants that are computed as one batch


@dataclass
class Outcome:
    """Counts of a run, and whether it was told to stop before its end."""

    written: int = 0
    failed: int = 0
    stopped: bool = False


def generate(
    sampler: Sampler,
    drawing: Drawing,
    units: Iterable[Unit],
    missing: Collection[Variant],
    writer: ExpansionWriter,
    progress: Callable[[int], None],
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Compute units and write those of their images that are missing.

    A unit is always computed whole, so that an image does not depend on which ones existed before.

    Args:
        sampler: The method, prepared.
        drawing: What decides the images beside the sampler.
        units: The units to compute; the next one is read while one is computed.
        missing: The variants to write.
        writer: Writes the images.
        progress: Is called after each unit with its number of written or failed images.
        stop: Is asked before each unit; if it returns true, no further unit is begun.
    """
    outcome = Outcome()
    fitting = FittingSampler(sampler)
    for unit, batch in _loaded_ahead(units, drawing):
        if stop():
            outcome.stopped = True
            break
        # Make the images of the unit, as 8 bits, and the figures about them.
        samples = sample_finite(fitting, batch, functools.partial(generators_of, unit, drawing))
        finite = samples.images.isfinite().flatten(1).all(dim=1).tolist()
        pixels = eight_bit(samples.images)
        details = _details(samples)
        # Hand the missing ones to the writer.
        num_handled = 0
        for i, variant in enumerate(unit):
            if variant not in missing:
                continue
            num_handled += 1
            if finite[i]:
                writer.write(pixels[i], variant, details[i])
                outcome.written += 1
            else:
                writer.record_failure(variant, "not finite")
                outcome.failed += 1
        progress(num_handled)
    return outcome


def _details(samples: Samples) -> list[dict[str, float]]:
    """The figures about each image, copied from the device in one go."""
    if not samples.details:
        return [{}] * len(samples.images)
    figures = [figure.to(samples.images) for figure in samples.details.values()]
    rows = torch.stack(figures, dim=1).tolist()
    return [
        {
            name: round(x, 6)
            for name, x in zip(samples.details, row, strict=True)
            if math.isfinite(x)
        }
        for row in rows
    ]


def _loaded_ahead(units: Iterable[Unit], drawing: Drawing) -> Iterator[tuple[Unit, Batch]]:
    """Units with their batches of real images; the next is read while the last is computed."""

    def load_next() -> tuple[Unit, Batch] | None:
        with phase("load"):
            for unit in remaining:
                return unit, make_batch(unit, drawing)
        return None

    remaining = iter(units)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        following = pool.submit(load_next)
        while True:
            with phase("idle"):
                loaded = following.result()
            if loaded is None:
                return
            following = pool.submit(load_next)
            yield loaded
