"""The two maps around the U-Net: images -> latents, latents -> images.

Spaces: `images` [0, 1]; `pixel_values` [-1, 1]; `latents` are the autoencoder's latents times
`vae.config.scaling_factor`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from expansion.common.phases import phase
from expansion.diffusion.caching import RecentlyUsed
from expansion.diffusion.families import Pipeline
from expansion.diffusion.memory import is_shortage, release
from expansion.diffusion.samples import Batch
from expansion.diffusion.stable_diffusion import weight_dtype

logger = logging.getLogger(__name__)

TILE = 64  # latent cells, side of what is decoded at a time after a shortage of memory
LATENTS_AT_ONCE = 4 * 64 * 64  # latent cells of one call of the decoder: four images of 512 pixels


class LatentCodec:
    """Maps images [0, 1] to scaled latents and back.

    The posterior of a real image is computed once and by itself, so that it does not depend on what
    else is in a batch, and kept while the image's variants follow each other.

    Args:
        pipeline: Gives the autoencoder.
        max_sources: Number of posteriors that are kept in memory.

    Attributes:
        tiled: Whether the decoder met a shortage of memory and works in tiles.
    """

    def __init__(self, pipeline: Pipeline, max_sources: int = 256):
        self.vae, self.scale_factor = pipeline.vae, pipeline.vae_scale_factor
        self.tiled = False
        self.posteriors: RecentlyUsed[DiagonalGaussianDistribution] = RecentlyUsed(max_sources)

    def encode(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Encode the real image of every variant: scaled latents (B, 4, h, w), float32.

        Args:
            batch: Real images and B variants of them.
            generators: B, of which each draws its variant's posterior sample.
        """
        samples = [
            self.encode_one(batch.sources[index], batch.images[index], generator)
            for index, generator in zip(batch.source_index.tolist(), generators, strict=True)
        ]
        return torch.cat(samples)

    def encode_one(self, source: str, image: Tensor, generator: torch.Generator) -> Tensor:
        """Encode one real image: scaled latents (1, 4, h, w), float32.

        Args:
            source: Name of the image; an equal name means an equal image.
            image: (3, H, W) in [0, 1].
            generator: Draws the posterior sample.
        """
        posterior = self._posterior_of(source, image)
        return posterior.sample(generator).float() * self.vae.config.scaling_factor

    def modes(self, batch: Batch) -> Tensor:
        """The likeliest latents of every variant's real image: (B, 4, h, w), float32, not scaled.

        This is how a U-Net that takes an image beside its latents is given it.
        """
        modes = [
            self._posterior_of(source, image).mode().float()
            for source, image in zip(batch.sources, batch.images, strict=True)
        ]
        return torch.cat(modes)[batch.source_index.to(modes[0].device)]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (B, 4, h, w) to images (B, 3, H, W) in [0, 1], float32."""
        with phase("decode"):
            return (self.decode_raw(latents) / 2 + 0.5).clamp(0, 1)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to (B, 3, H, W) in about [-1, 1], not clamped, float32."""
        scaled = (latents / self.vae.config.scaling_factor).to(weight_dtype(self.vae))
        parts = scaled.split(decoded_at_once(latents))
        return torch.cat([self._decode_part(part).float() for part in parts])

    def _decode_part(self, latents: Tensor) -> Tensor:
        """Decode latents that go into one call; after a shortage one by one, and last in tiles.

        Tiles overlap and are blended, so that such images differ a little from whole ones. Nothing
        is decoded in tiles where gradients are wanted.
        """
        if not self.tiled:
            images = self._decode_whole(latents)
            if images is not None:
                return images
            release()
            if len(latents) > 1:
                return torch.cat([self._decode_part(one) for one in latents.split(1)])
            self.tiled = True
            logger.warning("out of memory in the decoder; from now on it works in blended tiles")
        self.vae.tile_latent_min_size = TILE
        self.vae.tile_sample_min_size = TILE * self.scale_factor
        return self.vae.tiled_decode(latents).sample

    def _decode_whole(self, latents: Tensor) -> Tensor | None:
        """Decode without tiles; None if memory ran out where a smaller call can help."""
        try:
            return self.vae.decode(latents).sample
        except (RuntimeError, MemoryError) as error:
            divisible = len(latents) > 1 or max(latents.shape[-2:]) > TILE
            if not is_shortage(error) or not divisible or torch.is_grad_enabled():
                raise
            return None

    def _posterior_of(self, source: str, image: Tensor) -> DiagonalGaussianDistribution:
        return self.posteriors.get(
            (source, weight_dtype(self.vae)), lambda: self._posterior(image[None] * 2 - 1)
        )

    def _posterior(self, pixel_values: Tensor) -> DiagonalGaussianDistribution:
        with phase("encode"):
            images = pixel_values.to(self.vae.device, weight_dtype(self.vae))
            return self.vae.encode(images).latent_dist


def decoded_at_once(latents: Tensor) -> int:
    """How many latents of the size of `latents`, (B, 4, h, w), go into one call of the decoder."""
    return max(1, LATENTS_AT_ONCE // latents[0, 0].numel())
