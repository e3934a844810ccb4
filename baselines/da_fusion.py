"""DA-Fusion (arXiv 2302.07944): img2img with a learnt word and a strength drawn per variant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file
from torch import Generator, Tensor

from baselines.da_fusion_config import DAFusionConfig
from baselines.embeddings.words import add_words
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.families import Pipeline
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.sampler_config import STATELESS
from expansion.diffusion.samples import Batch, Samples


class DAFusionSampler(Img2ImgSampler):
    """img2img that begins at the step of the variant's own strength.

    Args:
        pipeline: The checkpoint; it gets the words of `config.embeddings`, if there are any.
        config: Settings of the method.
    """

    config: DAFusionConfig

    def __init__(self, pipeline: Pipeline, config: DAFusionConfig):
        super().__init__(pipeline, config)
        if config.embeddings is not None:
            trained = config.trained
            rows: dict[str, Tensor] = {}
            for name in trained.class_names:
                rows |= load_file(trained.file_of(name))
            add_words(pipeline, {word: row.flatten() for word, row in rows.items()})

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Noise each real image by its variant's strength, then denoise; see `Sampler.sample`.

        A generator draws the posterior and the noise, as those of img2img do, then the strength.
        """
        latents = self.codec.encode(batch, generators)
        noise = randn_tensor(latents.shape, generator=list(generators), device=latents.device)
        choices = self.config.all_strengths
        drawn = [int(torch.randint(len(choices), (), generator=g)) for g in generators]
        steps = torch.tensor([self.config.steps_of(choices[i]) for i in drawn])
        latents = self._denoise(latents, noise, steps, self.embed_prompts(batch), generators)
        strengths = torch.tensor([choices[i] for i in drawn]).to(latents)
        return Samples(self.codec.decode(latents), {"strength": strengths})

    def _denoise(
        self,
        latents: Tensor,
        noise: Tensor,
        steps: Tensor,
        conditioning: Conditioning,
        generators: Sequence[Generator],
    ) -> Tensor:
        """Noise each of B latents to the first of its last `steps` steps, and run these.

        Args:
            latents: Of the real images, (B, 4, h, w).
            noise: Standard normal, same shape.
            steps: (B,), on the CPU.
            conditioning: As `embed_prompts` gives it.
            generators: B, which draw the noise of a solver that needs some.

        Returns:
            Clean latents (B, 4, h, w).
        """
        denoiser, schedule = self.denoiser, self.denoiser.all_timesteps
        first = torch.tensor([schedule[-count] for count in steps.tolist()])
        latents = denoiser.scheduler.add_noise(latents, noise, first)
        # Rows may join at any step, unless steps depend on those before: by the solver or a cache.
        joining = self.config.resolved_solver in STATELESS and self.config.cache_interval == 1
        if joining:
            stretches = [(steps >= count, schedule[-count:][:1]) for count in _down_from(steps)]
        else:
            counts = steps.unique().tolist()
            stretches = [(steps == count, schedule[-count:]) for count in counts]
        for chosen, timesteps in stretches:
            rows = chosen.nonzero().flatten().to(latents.device)
            own = conditioning.of_images(rows, len(latents))
            latents = latents.clone()
            drawing = [generators[row] for row in rows.tolist()]
            latents[rows], _ = denoiser.run(latents[rows], timesteps, own, generators=drawing)
        return latents


def _down_from(steps: Tensor) -> range:
    """Number of steps that are left before each step of the longest stretch."""
    return range(int(steps.max()), 0, -1)
