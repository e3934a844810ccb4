"""The loop from real images to files: units of work through a sampler into a writer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from expansion.image_datasets import ImageRecord
from expansion.memory import FittingSampler
from expansion.naming import variant_name
from expansion.phases import phase
from expansion.prompts import Prompts
from expansion.sampler import Batch, Sampler, Samples
from expansion.seeding import image_generator, image_seed, stable_seed
from expansion.transforms import BICUBIC, to_unit_tensor
from expansion.writer import ExpansionWriter

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


def square_image(image: Image.Image, resolution: int, mode: str, seed: int) -> Tensor:
    """A real image as (3, resolution, resolution) in [0, 1].

    Args:
        image: RGB.
        resolution: Side, pixels.
        mode: "center_crop" and "random_crop" resize the shorter side first, "squash" both.
        seed: Place of the random crop.
    """
    if mode == "squash":
        return to_unit_tensor(F.resize(image, [resolution, resolution], BICUBIC))
    image = F.resize(image, [resolution], BICUBIC)
    if mode == "center_crop":
        return to_unit_tensor(F.center_crop(image, [resolution, resolution]))
    place = np.random.default_rng(seed)
    left = int(place.integers(image.width - resolution + 1))
    top = int(place.integers(image.height - resolution + 1))
    return to_unit_tensor(image.crop((left, top, left + resolution, top + resolution)))


def load_batch(unit: Unit, job: Job) -> Batch:
    """Read the real images of a unit, each once unless its crop differs by variant."""
    images: dict[str, Tensor] = {}
    index = []
    for record, variant in unit:
        source, seed = record.file_name, 0
        if job.resize_mode == "random_crop":
            source = f"{record.file_name}#{variant}"
            seed = stable_seed("crop", job.seed, source)
        if source not in images:
            images[source] = square_image(record.load(), job.resolution, job.resize_mode, seed)
        index.append(list(images).index(source))
    labels = [record.label for record, _ in unit]
    return Batch(
        images=torch.stack(list(images.values())),
        sources=tuple(images),
        source_index=torch.tensor(index),
        prompts=[job.prompts.prompt_of(r.file_name, r.label, v) for r, v in unit],
        targets=torch.tensor(labels),
        source_seeds=[stable_seed("source", job.seed, source) for source in images],
    )


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
        pixels = (samples.images.nan_to_num() * 255).round().to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
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


def sample_finite(
    fitting: FittingSampler, batch: Batch, generators: Callable[[], list[torch.Generator]]
) -> Samples:
    """`fitting.sample`, repeated once in float32 if a 16-bit network gave a NaN or infinity.

    Args:
        generators: Makes fresh generators, so that the repetition sees the same noise.
    """
    samples = fitting.sample(batch, generators)
    pipeline = fitting.sampler.pipeline
    dtype = pipeline.unet.dtype
    if dtype == torch.float32 or samples.images.isfinite().all():
        return samples
    logger.warning("an image was not finite in %s; repeating its batch in float32", dtype)
    pipeline.to(dtype=torch.float32)
    try:
        return fitting.sample(batch, generators)
    finally:
        pipeline.to(dtype=dtype)


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
