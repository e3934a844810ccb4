"""DreamDA as a sampler: one inversion per real image, one perturbed reverse run per variant.

`--inversion_per` says what the variants of a real image share. Random numbers for that come from
the real image's seed (`Batch.source_seeds`), all others from the variant's generator.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Generator, Tensor

from dreamda.config import DreamDAConfig
from dreamda.inversion import Inversion, ReverseProcess, cycle_inversion, ddim_inversion
from dreamda.perturbation import GaussianNoise, forked_features, perturbed_features
from expansion.common.errors import require
from expansion.diffusion.caching import RecentlyUsed
from expansion.diffusion.conditioning import Conditioning, embeds_guidance
from expansion.diffusion.denoising import guide
from expansion.diffusion.families import Pipeline
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.samples import Batch, Samples

MAX_INVERSIONS = 64  # that are kept in memory; 5 MB each at 80 steps of 64x64 latents


class DreamDASampler(Img2ImgSampler):
    """Inversion and latent perturbation (arXiv 2403.12803 sec. 4.2).

    Args:
        pipeline: A checkpoint of any family.
        config: Settings of sampling, inversion and perturbation.
    """

    config: DreamDAConfig

    def __init__(self, pipeline: Pipeline, config: DreamDAConfig):
        super().__init__(pipeline, config)
        require(
            pipeline.unet.mid_block is not None or not config.perturbs_features,
            "the U-Net of this checkpoint has no middle block, whose features dreamda perturbs; "
            "give another checkpoint, or --location xt",
        )
        self.process = ReverseProcess(self.denoiser, config.resolved_eta, pipeline.device)
        self.inversions: RecentlyUsed[Inversion] = RecentlyUsed(MAX_INVERSIONS)

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Invert the real images, then run them forward with perturbation; see `Sampler.sample`."""
        config = self.config
        # Where each variant starts, and what its steps add to their means.
        inversions = self._invert(batch, generators)
        latents = torch.cat([inversion.start for inversion in inversions])
        corrections = torch.stack([inversion.corrections for inversion in inversions], dim=1)
        conditioning = self.embed_prompts(batch)
        noise = GaussianNoise(
            config.noise_scale,
            relative=config.noise_scale_mode == "relative",
            generators=generators,
            shared=config.perturb == "eq6",
        )
        # The reverse process, with noise on latents or, through hooks, on the U-Net's features.
        if config.location == "xT":
            latents = noise(latents)
        with self._perturbed_unet(noise):
            for i, timestep in enumerate(self.denoiser.timesteps):
                latents = self._mean(i, timestep, latents, conditioning) + corrections[i]
                if config.location == "xt" and i + 1 < len(corrections):
                    latents = noise(latents)
        if config.location == "x0":
            latents = noise(latents)
        images = self.codec.decode(latents)
        return Samples(images, self._details(images, batch, noise))

    def _mean(
        self, index: int, timestep: int, latents: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The mean of a step (B, 4, h, w), by Eq. 6 or as the released code computes it.

        The released code uses the perturbed prediction in both terms; Eq. 6 has the perturbed
        x0hat but the clean noise.
        """
        rows, conditioning = self.denoiser.rows(latents, timestep, conditioning)
        prediction = self.denoiser.unet_rows(rows, timestep, conditioning)
        if self.config.perturb == "released":
            return self.process.mean(
                index,
                *self.process.split(index, latents, self.denoiser.guide(prediction, timestep)),
            )
        clean, perturbed = (self.denoiser.guide(p, timestep) for p in prediction.chunk(2))
        pred_original_sample, _ = self.process.split(index, latents, perturbed)
        _, noise_pred = self.process.split(index, latents, clean)
        return self.process.mean(index, pred_original_sample, noise_pred)

    def _perturbed_unet(self, noise: GaussianNoise) -> AbstractContextManager[None]:
        if not self.config.perturbs_features:
            return nullcontext()
        perturb = forked_features if self.config.perturb == "eq6" else perturbed_features
        return perturb(self.pipeline.unet, self.config.location, noise)

    def _invert(self, batch: Batch, generators: Sequence[Generator]) -> list[Inversion]:
        """One inversion per variant; `inversion_per` decides what they have in common."""
        inversions = []
        for index, generator in zip(batch.source_index.tolist(), generators, strict=True):
            source, image = batch.sources[index], batch.images[index]
            seed = batch.source_seeds[index]
            if self.config.inversion_per == "variant":
                inversion = self._invert_one(source, image, generator, generator)
            elif self.config.inversion_per == "trajectory":
                inversion = self._invert_one(source, image, _seeded(seed), generator)
            else:
                shared = _seeded(seed)
                inversion = self.inversions.get(
                    (source, seed, self.pipeline.unet.dtype),
                    functools.partial(self._invert_one, source, image, shared, shared),
                )
            inversions.append(inversion)
        return inversions

    def _invert_one(
        self, source: str, image: Tensor, start_generator: Generator, generator: Generator
    ) -> Inversion:
        """Invert a real image, always alone, so that no neighbour in a batch changes a bit of it.

        Args:
            source: Name of the real image.
            image: (3, H, W) in [0, 1].
            start_generator: Draws the latents and x_T.
            generator: Draws the noises after that.
        """
        latents = self.codec.encode_one(source, image, start_generator)
        if self.config.inversion == "ddim":
            return ddim_inversion(self.process, latents, self._predict_source)
        return cycle_inversion(
            self.process, latents, self._predict_source, generator, start_generator
        )

    def _predict_source(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Predict for latents (R, 4, h, w) at timesteps (R,) under the source prompt.

        `source_batch_size` rows go through the U-Net together.
        """
        config = self.config
        guided = config.source_rows_per_prediction == 2 and not embeds_guidance(self.pipeline.unet)
        negative_prompt = config.negative_prompt if guided else None
        size = tuple(side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])
        conditioning = self.prompt_encoder(
            [config.source_prompt], negative_prompt, size, config.source_guidance_scale
        )
        repeats = len(conditioning)  # 1 or 2
        predictions = []
        for rows, steps in zip(
            latents.split(config.source_batch_size),
            timesteps.split(config.source_batch_size),
            strict=True,
        ):
            prediction = self.denoiser.unet_rows(
                rows.repeat(repeats, 1, 1, 1),
                steps.repeat(repeats),
                conditioning.repeat_interleave(len(rows)),
            )
            predictions.append(
                guide(prediction, config.source_guidance_scale) if guided else prediction
            )
        return torch.cat(predictions)

    def _details(self, images: Tensor, batch: Batch, noise: GaussianNoise) -> dict[str, Tensor]:
        """Figures (B,) for the manifest.

        They are the standard deviation of what was perturbed, and the root mean square distance of
        the pixels, in [0, 1], to the real image.
        """
        real = batch.images[batch.source_index].to(images.device)
        distance = (images - real).square().mean(dim=(1, 2, 3)).sqrt()
        return {"perturbed_std": noise.mean_std(), "distance_to_real": distance}


def _seeded(seed: int) -> Generator:
    return torch.Generator("cpu").manual_seed(seed)
