"""img2img (SDEdit, arXiv 2108.01073): noise a real image part of the way, then denoise it.

Both papers' baseline, and the frame in which other methods intervene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from expansion.diffusion.conditioning import Conditioning, PromptEncoder
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.encoding import LatentCodec
from expansion.diffusion.families import Pipeline
from expansion.diffusion.sampler import Sampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples
from expansion.images.records import ImageRecord


class Img2ImgSampler(Sampler):
    """Makes variants of real images by noising and denoising a share of the schedule.

    `config.strength` is that share. Given equal noise the images equal those of diffusers'
    `StableDiffusionImg2ImgPipeline`, or `StableDiffusionXLImg2ImgPipeline`: a generator first draws
    the autoencoder's posterior, then the noise.

    Args:
        pipeline: A checkpoint of any family.
        config: Settings of denoising.
    """

    def __init__(self, pipeline: Pipeline, config: SamplerConfig):
        self.pipeline = pipeline
        self.denoiser = Denoiser(pipeline, config)
        self.config = self.denoiser.config
        self.codec = LatentCodec(pipeline)
        self.prompt_encoder = PromptEncoder(pipeline)

    @classmethod
    def build(
        cls,
        config: Any,
        class_names: Sequence[str],
        prompt_names: Sequence[str],
        load_pipeline: Callable[[], Pipeline],
    ) -> Img2ImgSampler:
        config.check_run()
        return cls(load_pipeline(), config)

    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Nothing to prepare: every image stands alone."""

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Noise the real images, then run all executed steps; see `Sampler.sample`."""
        latents, conditioning = self.start(batch, generators)
        latents, _ = self.denoiser.run(
            latents, self.denoiser.timesteps, conditioning, generators=generators
        )
        return Samples(self.codec.decode(latents))

    def start(self, batch: Batch, generators: Sequence[Generator]) -> tuple[Tensor, Conditioning]:
        """Where the executed steps begin.

        Args:
            batch: Real images and B variants of them.
            generators: B, of which each draws its variant's posterior, then its noise.

        Returns:
            Noised latents (B, 4, h, w) at the first executed step, and the conditions as
            `embed_prompts` gives them.
        """
        latents = self.codec.encode(batch, generators)
        noise = randn_tensor(latents.shape, generator=list(generators), device=latents.device)
        return self.denoiser.add_noise(latents, noise), self.embed_prompts(batch)

    def embed_prompts(self, batch: Batch) -> Conditioning:
        """Conditions of B variants: B rows, or with guidance 2B, the negative prompt's first."""
        negative_prompt = self.config.negative_prompt if self.config.guidance_scale > 1 else None
        return self.prompt_encoder(
            batch.prompts, negative_prompt, batch.size, self.config.guidance_scale
        )
