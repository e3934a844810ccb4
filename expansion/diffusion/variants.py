"""From real images to variants in memory: batches, their noise, and images without NaN."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from expansion.common.errors import require
from expansion.common.seeding import image_generator, stable_seed
from expansion.common.sharding import make_units
from expansion.diffusion.memory import CanSample, FittingSampler
from expansion.diffusion.samples import Batch, Samples
from expansion.diffusion.stable_diffusion import in_float32
from expansion.images.tensors import BICUBIC, to_unit_tensor
from expansion.images.variants import Variant, group_by

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """What decides the variants beside the sampler.

    Attributes:
        seed: Run seed.
        resolution: Side of the images, pixels.
        resize_mode: How a real image becomes square, see `square_image`.
    """

    seed: int
    resolution: int
    resize_mode: str


def square_image(image: Image.Image, resolution: int, mode: str, seed: int) -> Tensor:
    """Make a real image square: (3, resolution, resolution) in [0, 1].

    Args:
        image: RGB.
        resolution: Side of the square, pixels.
        mode: "center_crop" and "random_crop" cut the square after they resized the shorter side,
            "squash" resizes both sides.
        seed: Decides the place of the random crop.
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


def make_batch(variants: Sequence[Variant], drawing: Drawing) -> Batch:
    """Read the real images of some variants, each only once unless its crop differs by variant.

    Args:
        variants: B variants; each names its real image.
        drawing: Side of the images, and how they become square.
    """
    images: dict[str, Tensor] = {}
    files, index = [], []
    for variant in variants:
        record = variant.source
        source, seed = record.file_name, 0
        if drawing.resize_mode == "random_crop":
            source = f"{record.file_name}#{variant.number}"
            seed = stable_seed("crop", drawing.seed, source)
        if source not in images:
            images[source] = square_image(
                record.load(), drawing.resolution, drawing.resize_mode, seed
            )
            files.append(record.file_name)
        index.append(list(images).index(source))
    return Batch(
        images=torch.stack(list(images.values())),
        sources=tuple(images),
        source_index=torch.tensor(index),
        prompts=[variant.prompt for variant in variants],
        targets=torch.tensor([variant.source.label for variant in variants]),
        source_seeds=[stable_seed("source", drawing.seed, source) for source in images],
        files=files,
        numbers=[variant.number for variant in variants],
    )


def generators_of(variants: Sequence[Variant], drawing: Drawing) -> list[Generator]:
    """A fresh generator, on the CPU, for each of the `variants`.

    The run seed in `drawing`, the real image's name and the variant's number decide its noise.
    """
    return [image_generator(drawing.seed, *variant.key) for variant in variants]


def sample_finite(
    fitting: FittingSampler, batch: Batch, generators: Callable[[], list[Generator]]
) -> Samples:
    """Sample a batch, and repeat it in float32 if a 16-bit network gave a NaN or infinity.

    Args:
        fitting: Holds the sampler.
        batch: Real images and the variants asked of them.
        generators: Makes fresh generators, so that the repetition sees the same noise.
    """
    samples = fitting.sample(batch, generators)
    pipeline = fitting.sampler.pipeline
    dtype = pipeline.unet.dtype
    if dtype == torch.float32 or samples.images.isfinite().all():
        return samples
    logger.warning("an image was not finite in %s; repeating its batch in float32", dtype)
    with in_float32(pipeline):
        return fitting.sample(batch, generators)


def eight_bit(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1] as (B, H, W, 3) uint8; NaN becomes 0."""
    pixels = (images.nan_to_num() * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def variants_of(
    sampler: CanSample, variants: Sequence[Variant], drawing: Drawing, batch_size: int
) -> list[Image.Image]:
    """Make variants in memory, in the order given.

    Args:
        sampler: The method, prepared.
        variants: What is to be made.
        drawing: What decides the images beside the sampler.
        batch_size: Number of images that are denoised together.

    Raises:
        InputError: A variant is not finite, even in float32.
    """
    fitting = FittingSampler(sampler)
    made: list[Image.Image] = []
    group_of = group_by(sampler.config.variants_per_group)
    for unit in make_units(variants, batch_size, group_of):
        samples = sample_finite(
            fitting,
            _named_by_content(make_batch(unit, drawing)),
            functools.partial(generators_of, unit, drawing),
        )
        finite = samples.images.isfinite().flatten(1).all(dim=1).tolist()
        for variant, is_finite in zip(unit, finite, strict=True):
            require(
                is_finite,
                f"variant {variant.number} of image {variant.source.file_name} is not finite; "
                "try another seed or smaller steps",
            )
        made += map(Image.fromarray, eight_bit(samples.images))
    return made


def _named_by_content(batch: Batch) -> Batch:
    """The batch with names that later calls give to equal images only: samplers keep work by name.

    Callers of the library may give other images under the same names, "0", "1", ...
    """
    names = [
        f"{name} {hashlib.sha256(image.numpy().tobytes()).hexdigest()} {tuple(image.shape)}"
        for name, image in zip(batch.sources, batch.images, strict=True)
    ]
    return dataclasses.replace(batch, sources=names)
