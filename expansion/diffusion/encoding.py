"""The three maps around the U-Net: text -> embeddings, images -> latents, latents -> images.

Spaces: `images` [0, 1]; `pixel_values` [-1, 1]; `latents` are the autoencoder's latents times
`vae.config.scaling_factor`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from expansion.common.phases import phase
from expansion.diffusion.caching import RecentlyUsed
from expansion.diffusion.samples import Batch
from expansion.diffusion.stable_diffusion import weight_dtype

LATENTS_AT_ONCE = 4 * 64 * 64  # latent cells of one call of the decoder: four images of 512 pixels


class PromptEncoder:
    """Makes prompt embeddings, each text by itself and only once.

    Args:
        pipeline: Gives tokenizer and text encoder.
        max_texts: Number of embeddings that are kept in memory.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, max_texts: int = 2048):
        self.pipeline = pipeline
        self.embed = functools.lru_cache(max_texts)(self._embed)

    def _embed(self, text: str, dtype: torch.dtype) -> Tensor:
        with phase("encode"):
            embeds, _ = self.pipeline.encode_prompt(
                text,
                self.pipeline.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        return embeds[0].to(dtype)

    def __call__(self, prompts: Sequence[str], negative_prompt: str | None) -> Tensor:
        """Embed B prompts: (B, L, D) in the text encoder's number format.

        Args:
            prompts: B texts; L is the tokenizer's window, D the encoder's width.
            negative_prompt: If it is given, B rows of its embedding come first: (2B, L, D).
        """
        negative = [] if negative_prompt is None else [negative_prompt] * len(prompts)
        dtype = self.pipeline.text_encoder.dtype
        return torch.stack([self.embed(text, dtype) for text in (*negative, *prompts)])


class LatentCodec:
    """Maps images [0, 1] to scaled latents and back.

    The posterior of a real image is computed once and by itself, so that it does not depend on what
    else is in a batch, and kept while the image's variants follow each other.

    Args:
        pipeline: Gives the autoencoder.
        max_sources: Number of posteriors that are kept in memory.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, max_sources: int = 256):
        self.vae = pipeline.vae
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
        return torch.cat([self.vae.decode(part).sample.float() for part in parts])

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
