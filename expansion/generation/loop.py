"""The loop from real images to files: units of work through a sampler into a writer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from expansion.common.phases import phase
from expansion.common.seeding import image_generator, image_seed
from expansion.data.naming import variant_name
from expansion.data.prompts import Prompts
from expansion.diffusion.memory import FittingSampler
from expansion.diffusion.sampler import Sampler
from expansion.diffusion.samples import Batch, Samples
from expansion.diffusion.variants import Drawing, Variant, eight_bit, make_batch, sample_finite
from expansion.images.records import ImageRecord
from expansion.store.writer import ExpansionWriter

logger = logging.getLogger(__name__)

Unit = Sequence[tuple[ImageRecord, int]]  # (real image, variant number) of one batch
Work = tuple[Unit, Collection[tuple[str, int]]]  # and (file_name, variant) of what is to be written


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides the images of a run, beside sampler and units.

    Attributes:
        method: Name for the manifest.
        model: Identity of the checkpoint.
        config_hash: Hash of all settings.
        seed: Run seed.
        resolution: Side of the images, pixels.
        resize_mode: See `SamplerConfig`.
        prompts: Prompts by real image and variant.
        stems: file_name of a real image -> `<class folder>/<stem>`.
    """

    method: str
    model: str
    config_hash: str
    seed: int
    resolution: int
    resize_mode: str
    prompts: Prompts
    stems: Mapping[str, str]


@dataclass
class Outcome:
    """Counts of a run, and whether it was told to stop before its end."""

    written: int = 0
    failed: int = 0
    stopped: bool = False


def load_batch(unit: Unit, job: Job) -> Batch:
    """Read the real images of a unit."""
    prompt_of = job.prompts.prompt_of
    variants = [Variant(r, k, prompt_of(r.file_name, r.label, k)) for r, k in unit]
    return make_batch(variants, Drawing(job.seed, job.resolution, job.resize_mode))


def generate(
    sampler: Sampler,
    job: Job,
    work: Iterable[Work],
    writer: ExpansionWriter,
    progress: Callable[[int], None],
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Compute units and write the images that are wanted of them.

    A unit is always computed whole, so that an image does not depend on what was there before.

    Args:
        work: Units, each with the images to write; it is asked one unit ahead.
        progress: Called after each unit with its number of written or failed images.
        stop: Asked before each unit; if true, no further one is begun.
    """
    outcome = Outcome()
    fitting = FittingSampler(sampler)
    for unit, wanted, batch in _loaded_ahead(work, job):
        if stop():
            outcome.stopped = True
            break
        samples = sample_finite(fitting, batch, _generators(job, unit))
        finite = samples.images.isfinite().flatten(1).all(dim=1).tolist()
        pixels = eight_bit(samples.images)
        details = _details(samples)
        for i, (record, variant) in enumerate(unit):
            if (record.file_name, variant) not in wanted:
                continue
            if not finite[i]:
                writer.record_failure(record.file_name, variant, "not finite")
                outcome.failed += 1
                continue
            writer.write(pixels[i], manifest_row(job, record, variant, details[i]))
            outcome.written += 1
        progress(len(wanted))
    return outcome


def _generators(job: Job, unit: Unit) -> Callable[[], list[torch.Generator]]:
    return lambda: [image_generator(job.seed, record.file_name, v) for record, v in unit]


def _details(samples: Samples) -> list[dict[str, float]]:
    """Figures of each image, brought from the device at once."""
    if not samples.details:
        return [{}] * len(samples.images)
    rows = torch.stack(list(samples.details.values()), dim=1).tolist()
    return [
        {name: round(x, 6) for name, x in zip(samples.details, row) if math.isfinite(x)}
        for row in rows
    ]


def manifest_row(
    job: Job, record: ImageRecord, variant: int, details: Mapping[str, float]
) -> dict[str, object]:
    """What the manifest says of one image."""
    return {
        "file_name": variant_name(job.stems[record.file_name], variant),
        "label": record.label,
        "class": record.class_name,
        "source": record.file_name,
        "source_sha256": record.content,
        "variant": variant,
        "seed": image_seed(job.seed, record.file_name, variant),
        "prompt": job.prompts.prompt_of(record.file_name, record.label, variant),
        "method": job.method,
        "model": job.model,
        "config": job.config_hash,
        **({"details": dict(details)} if details else {}),
    }


def _loaded_ahead(
    work: Iterable[Work], job: Job
) -> Iterator[tuple[Unit, Collection[tuple[str, int]], Batch]]:
    """Work with its real images; the next unit is read while the current one is computed."""

    def load_next() -> tuple[Unit, Collection[tuple[str, int]], Batch] | None:
        with phase("load"):
            for unit, wanted in remaining:
                return unit, wanted, load_batch(unit, job)
        return None

    remaining = iter(work)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        following = pool.submit(load_next)
        while True:
            with phase("idle"):
                loaded = following.result()
            if loaded is None:
                return
            following = pool.submit(load_next)
            yield loaded
