"""Text-to-image: images of a class from noise and a prompt alone.

A variant has a real image all the same: it has that image's label, and each class is expanded by
the same factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.samples import Batch


class Text2ImgSampler(Img2ImgSampler):
    """Denoises standard normal latents by the whole schedule.

    Given equal noise the images equal those of diffusers' `StableDiffusionPipeline`, or
    `StableDiffusionXLPipeline`. Of the real images only the size counts, never a pixel.
    """

    def noise(self, batch: Batch, generators: Sequence[Generator]) -> Tensor:
        """Standard normal latents (B, 4, h, w), of which each generator draws its variant's."""
        height, width = (side // self.pipeline.vae_scale_factor for side in batch.size)
        return randn_tensor(
            (len(batch), self.pipeline.vae.config.latent_channels, height, width),
            generator=list(generators),
            device=self.pipeline.device,
            dtype=torch.float32,
        )

    def start(self, batch: Batch, generators: Sequence[Generator]) -> tuple[Tensor, Conditioning]:
        """Where the steps begin; each generator draws the noise of its variant.

        Returns:
            Latents (B, 4, h, w), standard normal, and the conditions as `embed_prompts` gives them.
        """
        noise = self.noise(batch, generators)
        return self.denoiser.start(noise), self.embed_prompts(batch)
