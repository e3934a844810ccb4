"""The contenders of `sampling`: our samplers, from file to file, and diffusers' pipelines."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from expansion.common.phases import PhaseClock
from expansion.common.sharding import make_units
from expansion.diffusion.families import STABLE_DIFFUSION_XL, Pipeline, family_of
from expansion.diffusion.sampler import Sampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.variants import Drawing, square_image
from expansion.generation.loop import generate
from expansion.images.variants import Variant, group_by
from expansion.store.manifest import MadeWith
from expansion.store.writer import ExpansionWriter

# Makes variants in batches of a size and writes them to a folder.
Run = Callable[[Sequence[Variant], Path, int], None]


@dataclass
class Measurement:
    """A run: number of images, U-Net rows, seconds, and peak of the GPU memory in bytes."""

    images: int
    rows: int
    seconds: float
    peak: int


@dataclass(frozen=True)
class Contender:
    """A way to make variants, at one batch size.

    Attributes:
        name: Name in the table.
        batch_size: Number of images that are denoised together.
        pipeline: The pipeline whose U-Net rows are counted.
        prepare: Gives a new `Run`, which has kept nothing from earlier ones; is not timed.
    """

    name: str
    batch_size: int
    pipeline: Pipeline
    prepare: Callable[[], Run]

    def measure(self, variants: Sequence[Variant], clock: PhaseClock | None = None) -> Measurement:
        """Make variants of image files and write them to a temporary folder.

        Args:
            variants: What to make.
            clock: Measures the time by phase, if it is given.
        """
        run = self.prepare()
        device = self.pipeline.device
        synchronize(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with tempfile.TemporaryDirectory() as folder, counted_rows(self.pipeline.unet) as rows:
            begun = time.perf_counter()
            with clock.running() if clock is not None else nullcontext():
                run(variants, Path(folder), self.batch_size)
                synchronize(device)
            seconds = time.perf_counter() - begun
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return Measurement(len(variants), sum(rows), seconds, peak)


def our_run(sampler: Sampler, drawing: Drawing) -> Run:
    """A sampler in the same loop as in expand.py.

    Args:
        sampler: The method, prepared.
        drawing: What decides the images beside the sampler.
    """

    def run(variants: Sequence[Variant], folder: Path, batch_size: int) -> None:
        units = make_units(variants, batch_size, group_by(sampler.config.variants_per_group))
        made_with = MadeWith("benchmark", "benchmark", "benchmark", drawing.seed)
        with ExpansionWriter(folder, made_with) as writer:
            outcome = generate(sampler, drawing, units, variants, writer, lambda count: None)
        if outcome.failed:
            raise RuntimeError(f"{outcome.failed} images were not finite")

    return run


def diffusers_run(
    pipeline: Pipeline, drawing: Drawing, config: SamplerConfig, **options: Any
) -> Run:
    """A pipeline of diffusers, as a simple script uses it: open, resize, call, save.

    Args:
        pipeline: The pipeline.
        drawing: Side of the images, and how they become square.
        config: Number of steps, strength and guidance scale.
        **options: Further arguments of the call; a text is repeated for every image.
    """

    def run(variants: Sequence[Variant], folder: Path, batch_size: int) -> None:
        size, mode = drawing.resolution, drawing.resize_mode
        for start in range(0, len(variants), batch_size):
            unit = variants[start : start + batch_size]
            images = torch.stack([square_image(v.source.load(), size, mode, 0) for v in unit])
            repeated = {
                name: [value] * len(unit) if isinstance(value, str) else value
                for name, value in options.items()
            }
            made = pipeline(
                prompt=[variant.prompt for variant in unit],
                image=images,
                strength=config.strength,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(start + i) for i in range(len(unit))],
                **repeated,
            ).images
            for i, image in enumerate(made):
                image.save(folder / f"{start + i}.png")

    return run


def diffusers_pipeline(name: str, pipeline: Pipeline) -> Pipeline:
    """The pipeline class `name` of diffusers with the networks of `pipeline` and DDIM.

    With a checkpoint of SDXL it is that class's counterpart for SDXL.
    """
    import diffusers

    if family_of(pipeline) is STABLE_DIFFUSION_XL:
        xl_class = getattr(diffusers, name.replace("StableDiffusion", "StableDiffusionXL"))
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        made = xl_class(**{**pipeline.components, "scheduler": scheduler})
        made.set_progress_bar_config(disable=True)
        return made
    parts = dict(pipeline.components)
    parts["scheduler"] = DDIMScheduler.from_config(pipeline.scheduler.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipeline_class = getattr(diffusers, name)
        if pipeline_class is not StableDiffusionImg2ImgPipeline:
            parts.pop("image_encoder", None)
        made = pipeline_class(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def unet_flops(unet: UNet2DConditionModel, side: int) -> int:
    """Floating-point operations of a row in the U-Net, for latents with a side of `side` cells."""
    config = unet.config
    shapes: dict[str, tuple[int, ...]] = {"sample": (1, config.in_channels, side, side)}
    shapes["encoder_hidden_states"] = (1, 77, config.cross_attention_dim)
    inputs: dict[str, Any] = {
        name: torch.zeros(shape).to(unet.device, unet.dtype) for name, shape in shapes.items()
    }
    if config.addition_embed_type == "text_time":  # SDXL: pooled text, and six numbers
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": (1, pooled), "time_ids": (1, 6)}
        inputs["added_cond_kwargs"] = {
            name: torch.zeros(shape).to(unet.device, unet.dtype) for name, shape in added.items()
        }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(timestep=1, **inputs)
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(6):
        synchronize(device)
        begun = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all its work; nothing to wait for on the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def counted_rows(unet: nn.Module) -> Iterator[list[int]]:
    """Inside this context the list receives the number of rows of every call of the U-Net."""
    rows: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()


def some_variants(variants: Sequence[Variant], count: int) -> list[Variant]:
    """The first `count` variants, repeated if there are fewer, under other file names."""
    cycle = itertools.cycle(variants)
    return [dataclasses.replace(next(cycle), file_name=f"all/{i}.png") for i in range(count)]
