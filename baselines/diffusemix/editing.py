"""Denoising by a U-Net that sees a real image beside the latents: InstructPix2Pix (2211.09800).

Symbols: e(c, i) is the U-Net's prediction with prompt c and real image i; 0 stands for the negative
prompt, or for image latents of zeros; g_c and g_i are the guidance scales of prompt and image.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from baselines.diffusemix.config import DiffuseMixConfig
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.denoising import Denoiser


class EditingDenoiser(Denoiser):
    """Runs the reverse process of an edit; the arithmetic of its steps is that of `Denoiser`.

    Steps outside of the guided interval take one row, e(c, i).

    Attributes:
        image_latents: (B, 4, h, w), of the real images that are edited.
    """

    config: DiffuseMixConfig
    image_latents: Tensor

    def of(self, image_latents: Tensor) -> EditingDenoiser:
        """The denoiser of these images' edits.

        Args:
            image_latents: (B, 4, h, w), the modes of the posteriors, not scaled.
        """
        bound = copy.copy(self)
        bound.image_latents = image_latents
        return bound

    def rows(
        self, latents: Tensor, timestep: int, conditioning: Conditioning
    ) -> tuple[Tensor, Conditioning]:
        """What `unet_rows` takes: rows of e(c, i), then of e(0, i) and of e(0, 0) if guided.

        Args:
            latents: (B, 4, h, w).
            timestep: One of `all_timesteps`.
            conditioning: 2B rows, those of the negative prompt first; B rows without guidance.

        Returns:
            Latents beside image latents (3B or B, 8, h, w), and as many rows of conditions.
        """
        image, prompted = self.image_latents, conditioning[-len(latents) :]
        if timestep not in self._guided:
            return torch.cat([latents, image], dim=1), prompted
        negative = conditioning[: len(latents)]
        images = torch.cat([image, image, torch.zeros_like(image)])
        rows = torch.cat([latents.repeat(3, 1, 1, 1), images], dim=1)
        return rows, Conditioning.cat([prompted, negative, negative])

    def guide(
        self, prediction: Tensor, timestep: int, guidance_scale: Tensor | None = None
    ) -> Tensor:
        """e(0, 0) + g_c (e(c, i) - e(0, i)) + g_i (e(0, i) - e(0, 0)), (B, 4, h, w); Eq. 3 there.

        Args:
            prediction: Of the rows that `rows` gives.
            timestep: Where they were predicted.
            guidance_scale: g_c of each sample, (B,); default: the config's.
        """
        if timestep not in self._guided:
            return prediction
        both, image, neither = prediction.chunk(3)
        scale: float | Tensor = self.config.guidance_scale
        if guidance_scale is not None:
            scale = guidance_scale.view(-1, 1, 1, 1)
        by_image = self.config.image_guidance_scale * (image - neither)
        return neither + scale * (both - image) + by_image
