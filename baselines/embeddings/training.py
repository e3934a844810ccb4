"""The training loop of textual inversion and Diffusion Inversion: a frozen checkpoint, one tensor.

Only the embeddings are trained. A visit is one image that goes through the U-Net at one timestep,
forward and backward; all its randomness comes from its own generator, so that neither a batch nor
an interruption changes it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Generator, Tensor, nn

from baselines.embeddings.config import EmbeddingTrainingConfig
from expansion.common.errors import InputError, require
from expansion.common.files import write_atomic
from expansion.common.seeding import stable_seed
from expansion.data.batches import stream_indices
from expansion.diffusion.caching import RecentlyUsed
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.families import family_of, require_one_text_encoder
from expansion.diffusion.losses import squared_errors
from expansion.diffusion.memory import is_shortage, recomputing, release
from expansion.diffusion.stable_diffusion import default_resolution
from expansion.diffusion.variants import square_image
from expansion.images.records import ImageRecord
from expansion.training.divergence import remedy

POSTERIORS_KEPT = 1024  # on the device; those of 512 pixels take 328 kB each


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is trained together: the word of a class, or the embeddings of a group of images.

    Attributes:
        name: Tells it from others; decides its random numbers.
        records: N training images.
        start: Where the embeddings start, of any shape, float32.
        visits: Number of visits of all images together.
        batch_size: Visits of an optimiser step; the last one may have fewer.
        shuffled: Whether the images come in another order in every pass.
    """

    name: str
    records: Sequence[ImageRecord]
    start: Tensor
    visits: int
    batch_size: int
    shuffled: bool

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(self.visits / self.batch_size)


@dataclass(frozen=True)
class Visit:
    """An image that is visited: its number among the task's images, and the visit's own seed."""

    index: int
    seed: int


Embed = Callable[[Tensor, Sequence[Visit]], Tensor]  # embeddings, B visits -> (B, L, D)
AfterStep = Callable[[int, float], None]


class EmbeddingTrainer:
    """Trains embeddings so that a frozen checkpoint predicts the noise of noised images with them.

    After a shortage of memory, steps go on in more parts, and at last with recomputed activations:
    the same result but for rounding.

    Args:
        pipeline: The checkpoint, float32; it stays as it is.
        config: Settings of the training.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, config: EmbeddingTrainingConfig):
        require_one_text_encoder(family_of(pipeline), "a trained embedding")
        self.pipeline, self.config = pipeline, config
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.resolution = config.resolution or default_resolution(pipeline)
        self.posteriors: RecentlyUsed[DiagonalGaussianDistribution] = RecentlyUsed(POSTERIORS_KEPT)
        self.parts, self.recomputes = config.gradient_accumulation_steps, False

    def train(
        self, task: Task, embed: Embed, state_path: Path, after_step: AfterStep
    ) -> tuple[Tensor, float]:
        """Train from the start, or from the state that an earlier run left.

        Args:
            task: What is trained, on which images.
            embed: Turns the embeddings in training into the text encoder's output for some visits.
            state_path: File of the resumable state; the caller removes its folder at the end.
            after_step: Is called after every step with its number (from 1) and its loss.

        Returns:
            The embeddings, like `task.start` and on the CPU, and the seconds that they took.

        Raises:
            InputError: The loss is not finite any more.
        """
        config = self.config
        values = nn.Parameter(task.start.to(self.pipeline.device, copy=True))
        rate = config.step_size
        optimizer = torch.optim.AdamW([values], lr=rate, weight_decay=config.adam_weight_decay)
        first, before = _resume(state_path, values, optimizer)
        begun = time.monotonic()
        for step in range(first, task.steps):
            loss = self._step(task, step, embed, values, optimizer)
            if not math.isfinite(loss) or not values.isfinite().all():
                advice = remedy("learning_rate", config.learning_rate, config.mixed_precision)
                raise InputError(f"training has stopped: the loss of step {step + 1} of {task.name}"
                                 f" is {loss}; {advice}")  # fmt: skip
            after_step(step + 1, loss)
            every = config.checkpointing_steps
            if every and (step + 1) % every == 0:
                seconds = before + time.monotonic() - begun
                _save_state(state_path, values, optimizer, step + 1, seconds)
        return values.detach().cpu(), before + time.monotonic() - begun

    def _step(
        self,
        task: Task,
        step: int,
        embed: Embed,
        values: nn.Parameter,
        optimizer: torch.optim.Optimizer,
    ) -> float:
        """Take an optimiser step; returns the mean loss of its visits."""
        visits = visits_of(task, step, self.config.seed)
        while True:
            parts = min(self.parts, len(visits))
            loss = self._gradient(task, visits, parts, embed, values)
            if loss is not None:
                break
            optimizer.zero_grad()
            release()
            self._save_memory(parts, len(visits))
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def _gradient(
        self, task: Task, visits: Sequence[Visit], parts: int, embed: Embed, values: nn.Parameter
    ) -> float | None:
        """Add the gradient of the visits' mean loss; returns the loss, None if memory ran out."""
        total = torch.zeros((), device=values.device)
        try:
            with recomputing(self.pipeline.unet) if self.recomputes else nullcontext():
                for i in range(parts):
                    errors = self._errors(task, visits[i::parts], embed, values)
                    loss = errors.sum() / len(visits)
                    loss.backward()
                    total += loss.detach()
            return total.item()
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            return None

    def _save_memory(self, parts: int, num_visits: int) -> None:
        """Settle for more parts than `parts`, or for recomputing; InputError if neither is left."""
        if parts < num_visits:
            self.parts = min(2 * parts, num_visits)
            logger.warning(
                f"out of memory; going on as if with --gradient_accumulation_steps {self.parts}"
            )
            return
        require(
            not self.recomputes,
            "one image alone exceeds the memory, so that no --gradient_accumulation_steps helps; "
            "give a smaller --resolution, or a larger device",
        )
        self.recomputes = True
        logger.warning("out of memory with one image at a time; computing more, keeping less")

    def _errors(
        self, task: Task, visits: Sequence[Visit], embed: Embed, values: nn.Parameter
    ) -> Tensor:
        """The squared error of the prediction at each of B visits, (B,)."""
        drawn = [self._draw(task, visit) for visit in visits]
        latents, noise, timesteps = (
            torch.stack(column).to(values.device) for column in zip(*drawn, strict=True)
        )
        autocast = torch.autocast(
            values.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"
        )
        with autocast:
            conditioning = Conditioning(embed(values, visits))
            return squared_errors(
                self.pipeline.unet, self.scheduler, latents, conditioning, noise, timesteps
            )

    def _draw(self, task: Task, visit: Visit) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (4, h, w), noise like them and timestep (), of a visit's own generator."""
        generator = Generator("cpu").manual_seed(visit.seed)
        flip = bool(torch.rand((), generator=generator) < 0.5) and self.config.random_flip
        count = self.scheduler.config.num_train_timesteps
        timestep = torch.randint(count, (), generator=generator)
        record = task.records[visit.index]
        posterior = self.posteriors.get(
            (record.file_name, flip), lambda: self._posterior(record, flip)
        )
        sample = posterior.sample(generator).float()[0]
        latents = sample * self.pipeline.vae.config.scaling_factor
        return latents, torch.randn(latents.shape, generator=generator).to(latents), timestep

    @torch.no_grad()
    def _posterior(self, record: ImageRecord, flip: bool) -> DiagonalGaussianDistribution:
        """What the autoencoder makes of an image; computed by itself, once as far as it is kept."""
        image = square_image(record.load(), self.resolution, self.config.resize_mode, 0)
        pixel_values = (image.flip(-1) if flip else image)[None] * 2 - 1
        return self.pipeline.vae.encode(pixel_values.to(self.pipeline.device)).latent_dist


def visits_of(task: Task, step: int, seed: int) -> list[Visit]:
    """The visits of an optimiser step.

    Args:
        task: What is trained.
        step: From 0.
        seed: Of the run.
    """
    start = step * task.batch_size
    count = min(task.batch_size, task.visits - start)
    if task.shuffled:
        order = stable_seed("order", seed, task.name)
        indices = stream_indices(len(task.records), start, count, order)
    else:
        indices = [position % len(task.records) for position in range(start, start + count)]
    return [
        Visit(index, stable_seed("visit", seed, task.name, start + i))
        for i, index in enumerate(indices)
    ]


def _save_state(
    path: Path, values: nn.Parameter, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Keep all that the steps after `step` depend on."""
    state = optimizer.state[values]
    tensors = {name: state[name] for name in ("exp_avg", "exp_avg_sq")} | {"values": values.data}
    facts = {"step": step, "seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(cpu, {"facts": json.dumps(facts)}))


def _resume(
    path: Path, values: nn.Parameter, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load the state, if there is one; returns the number of steps done and their seconds."""
    if not path.is_file():
        return 0, 0.0
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    tensors = {name: tensor.to(values.device) for name, tensor in load_file(path).items()}
    values.data.copy_(tensors.pop("values"))
    optimizer.state[values] = {"step": torch.tensor(float(facts["step"])), **tensors}
    return facts["step"], facts["seconds"]
