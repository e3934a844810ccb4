"""DistDiff's settings, images and prototypes for tests of its guidance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from expansion.diffusion.samples import Batch

DIRECT = {"guidance_type": "direct_guidance"}
PROMPTS = ["a photo of the digit one", "a two", "a three", "a photo of the digit one"]


def distdiff(**options) -> DistDiffConfig:
    """10 steps of which the last five run, 401 301 201 101 1; the window is 301 201."""
    shared = {
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "guidance_step": 4,
        "guidance_period": 2,
    }
    shared |= {"encoder_weight_path": "guide", "log_energy": True}
    return DistDiffConfig(**{**shared, **options})


def make_batch(rows: slice = slice(None)) -> Batch:
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    images = F.interpolate(coarse, (32, 32), mode="bilinear")
    index = torch.tensor([0, 0, 1, 1])[rows]
    targets = torch.tensor([1, 2, 3, 1])[rows]
    return Batch(images, ("a", "b"), index, PROMPTS[rows], targets, (7, 8))


PAIR = make_batch(slice(1, 3))  # one variant of each image


def generators(count: int = 4, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(70 + first + i) for i in range(count)]


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


PROTOTYPES = Prototypes(unit(10, 128, seed=1), unit(10, 3, 128, seed=2))


def make_sampler(pipeline, guide, **options) -> DistDiffSampler:
    sampler = DistDiffSampler(pipeline, distdiff(**options), guide)
    sampler.use_prototypes(PROTOTYPES)
    return sampler


def drawn_transform(drawn: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """w ~ U(0, 1), then b ~ N(0, 1), per image and channel."""
    w = torch.stack([torch.rand(4, 1, 1, generator=g) for g in drawn])
    return w, torch.stack([torch.randn(4, 1, 1, generator=g) for g in drawn])
