"""BoT (arXiv 2302.03298): text-to-image from many domains, at a random guidance scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator

from baselines.bot_config import BoTConfig
from baselines.text2img import Text2ImgSampler
from expansion.diffusion.samples import Batch, Samples


class BoTSampler(Text2ImgSampler):
    """Text-to-image whose guidance scale is drawn for each image, uniform over whole numbers."""

    config: BoTConfig

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Draw noise, then a guidance scale, and run all steps; see `Sampler.sample`."""
        latents, conditioning = self.start(batch, generators)
        largest = int(self.config.guidance_scale)
        drawn = [torch.randint(1, largest + 1, (1,), generator=g) for g in generators]
        scale = torch.cat(drawn).to(latents)
        latents, _ = self.denoiser.run(
            latents, self.denoiser.timesteps, conditioning, scale, generators=generators
        )
        return Samples(self.codec.decode(latents), {"guidance_scale": scale})
