"""Samples of Diffusion Inversion: text-to-image whose prompt is a real image's own embedding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from baselines.diffusion_inversion.config import DiffusionInversionConfig
from baselines.text2img import Text2ImgSampler
from expansion.common.errors import require
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.families import Pipeline, family_of, require_one_text_encoder
from expansion.diffusion.samples import Batch, Samples
from expansion.diffusion.stable_diffusion import weight_dtype
from expansion.images.records import ImageRecord


class DiffusionInversionSampler(Text2ImgSampler):
    """Starts from noise; partners and means are those of the real images that are expanded.

    Args:
        pipeline: The checkpoint that the embeddings were trained with.
        config: Settings of the method; must name the embeddings.
    """

    config: DiffusionInversionConfig

    def __init__(self, pipeline: Pipeline, config: DiffusionInversionConfig):
        require_one_text_encoder(family_of(pipeline), "a trained embedding")
        super().__init__(pipeline, config)
        self.embedding_of: dict[str, Tensor] = {}  # file name -> (tokens, D)
        self.group_of: dict[str, tuple[str, int]] = {}  # file name -> class, number of its group
        self.members: dict[tuple[str, int], list[str]] = {}  # group -> file names
        self.mean_of: dict[tuple[str, int], Tensor] = {}  # group -> (tokens, D)

    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Load the embeddings of the real images, and group them.

        Raises:
            InputError: An image has none.
        """
        self.group_of = self.config.groups_of(records)
        members: dict[tuple[str, int], list[str]] = defaultdict(list)
        for name, group in self.group_of.items():
            members[group].append(name)
        self.members = dict(members)
        for class_name in sorted({class_name for class_name, _ in members}):
            tensors = load_file(self.config.trained.file_of(class_name))
            own = [name for name in tensors if name in self.group_of]
            self.embedding_of |= {name: tensors[name].float() for name in own}
        self.mean_of = {
            group: torch.stack([self.embedding_of[name] for name in names]).mean(dim=0)
            for group, names in members.items()
        }

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Draw noise, then the embedding, then the noise of every step; see `Sampler.sample`."""
        latents = self.noise(batch, generators)
        embeds = self.embed(batch, generators).to(self.pipeline.device, weight_dtype(
            self.pipeline.unet))  # fmt: skip
        latents, _ = self.denoiser.run(
            latents,
            self.denoiser.timesteps,
            Conditioning(embeds),
            eta=self.config.eta,
            generators=generators,
        )
        return Samples(self.codec.decode(latents))

    def embed(self, batch: Batch, generators: Sequence[Generator]) -> Tensor:
        """What the U-Net gets in place of a text encoder's output, float32, on the CPU.

        Args:
            batch: B variants, which `prepare` has seen the real images of.
            generators: B, of which each draws its variant's partner, then the noise.

        Returns:
            c of every variant, (B, tokens, D), or with guidance (2B, tokens, D), the means first.
        """
        files = [batch.files[index] for index in batch.source_index.tolist()]
        for name in files:
            require(name in self.group_of, f"{name} has no embedding: prepare() did not see it")
        own = [self._mixed(name, g) for name, g in zip(files, generators, strict=True)]
        means = [self.mean_of[self.group_of[name]] for name in files]
        return torch.stack([*means, *own] if self.config.guidance_scale > 1 else own)

    def _mixed(self, name: str, generator: Generator) -> Tensor:
        """c = (1 - a) e_i + a e_j + s N(0, I), (tokens, D); j is any image of i's group."""
        members = self.members[self.group_of[name]]
        partner = members[int(torch.randint(len(members), (), generator=generator))]
        mixed = torch.lerp(
            self.embedding_of[name], self.embedding_of[partner], self.config.interpolation
        )
        noise = torch.randn(mixed.shape, generator=generator)
        return mixed + self.config.embedding_noise * noise
