"""DiffuseMix: an edit of the real image by a prompt, mixed with the real one and a fractal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from baselines.diffusemix.config import DiffuseMixConfig
from baselines.diffusemix.editing import EditingDenoiser
from baselines.diffusemix.fractals import FolderFractals, Fractals, OwnFractals
from baselines.diffusemix.mixing import SEAM, SIDES, real_share
from baselines.text2img import Text2ImgSampler
from expansion.diffusion.families import Pipeline
from expansion.diffusion.samples import Batch, Samples


class DiffuseMixSampler(Text2ImgSampler):
    """Half of each variant is the real image, half its edit; a faint fractal lies over both.

    Given equal noise the edits equal those of diffusers' `StableDiffusionInstructPix2PixPipeline`
    with DDIM. A generator first draws the noise, then which half stays real, then the fractal.

    Args:
        pipeline: A checkpoint of InstructPix2Pix.
        config: Settings of edit and mix.
    """

    config: DiffuseMixConfig
    denoiser: EditingDenoiser

    def __init__(self, pipeline: Pipeline, config: DiffuseMixConfig):
        super().__init__(pipeline, config)
        self.denoiser = EditingDenoiser(pipeline, config)
        folder = config.fractals
        self.fractals: Fractals = OwnFractals() if folder is None else FolderFractals(folder)

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Edit the real images, then mix real image, edit and fractal; see `Sampler.sample`."""
        edits = self.edit(batch, generators)
        # What each generator draws after its noise.
        sides = SIDES[self.config.mix_compat]
        chosen = torch.cat([torch.randint(len(sides), (1,), generator=g) for g in generators])
        numbers = [torch.randint(len(self.fractals), (1,), generator=g) for g in generators]
        # A lerp between equal pixels, or of weight 0, changes no bit.
        real = batch.images[batch.source_index].to(edits)
        height, width = real.shape[-2:]
        seam = SEAM if self.config.mix_compat == "released" else 0.0
        shares = torch.stack([real_share(sides[i], height, width, seam) for i in chosen.tolist()])
        mixed = torch.lerp(edits, real, shares[:, None].to(edits))
        if self.config.fractal_weight > 0:
            drawn = [self.fractals.picture(int(number), height) for number in numbers]
            mixed = torch.lerp(mixed, torch.stack(drawn).to(mixed), self.config.fractal_weight)
        moved = (edits - real).square().mean(dim=(1, 2, 3)).sqrt()
        details = {"mask": chosen, "fractal": torch.cat(numbers), "edit_distance": moved}
        return Samples(mixed, details)

    def edit(self, batch: Batch, generators: Sequence[Generator]) -> Tensor:
        """Edit the real images by the prompts: (B, 3, H, W) in [0, 1].

        Args:
            batch: Real images and B variants of them.
            generators: B, of which each draws the noise of its edit.
        """
        latents, conditioning = self.start(batch, generators)
        denoiser = self.denoiser.of(self.codec.modes(batch))
        latents, _ = denoiser.run(latents, denoiser.timesteps, conditioning, generators=generators)
        return self.codec.decode(latents)
