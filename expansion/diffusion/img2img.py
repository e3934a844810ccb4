"""img2img (SDEdit, arXiv 2108.01073): noise a real image part of the way, then denoise it.

Both papers' baseline, and the frame in which other methods intervene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.encoding import LatentCodec, PromptEncoder
from expansion.diffusion.sampler import Sampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples
from expansion.images.records import ImageRecord


class Img2ImgSampler(Sampler):
    """Makes variants of real images by noising and denoising a share of the schedule.

    `config.strength` is that share. Given equal noise the images equal those of diffusers'
    `StableDiffusionImg2ImgPipeline`: a generator first draws the autoencoder's posterior, then the
    noise.

    Args:
        pipeline: Any SD-1.x or 2.x checkpoint.
        config: Settings of denoising.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, config: SamplerConfig):
        self.pipeline = pipeline
        self.config = config
        self.denoiser = Denoiser(pipeline, config)
        self.codec = LatentCodec(pipeline)
        self.prompt_encoder = PromptEncoder(pipeline)

    @classmethod
    def build(
        cls,
        config: Any,
        class_names: Sequence[str],
        prompt_names: Sequence[str],
        load_pipeline: Callable[[], StableDiffusionPipeline],
    ) -> Img2ImgSampler:
        config.check_run()
        return cls(load_pipeline(), config)

    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Nothing to prepare: every image stands alone."""

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Noise the real images, then run all executed steps; see `Sampler.sample`."""
        latents, prompt_embeds = self.start(batch, generators)
        latents, _ = self.denoiser.run(latents, self.denoiser.timesteps, prompt_embeds)
        return Samples(self.codec.decode(latents))

    def start(self, batch: Batch, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
        """Where the executed steps begin.

        Args:
            batch: Real images and B variants of them.
            generators: B, of which each draws its variant's posterior, then its noise.

        Returns:
            Noised latents (B, 4, h, w) at the first executed step, and the prompt embeddings as
            `embed_prompts` gives them.
        """
        latents = self.codec.encode(batch, generators)
        noise = randn_tensor(latents.shape, generator=list(generators), device=latents.device)
        return self.denoiser.add_noise(latents, noise), self.embed_prompts(batch.prompts)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embed B prompts: (B, L, D), or with guidance (2B, L, D), the negative prompt's first."""
        negative_prompt = self.config.negative_prompt if self.config.guidance_scale > 1 else None
        return self.prompt_encoder(prompts, negative_prompt)
