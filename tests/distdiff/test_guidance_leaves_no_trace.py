"""Guidance leaves modes, gradients and memory settings of the pipeline as it found them."""

from __future__ import annotations

import pytest
import torch

from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL
from tests.helpers.distdiff_parts import (
    DIRECT,
    PAIR,
    generators,
    make_sampler,
)


@pytest.mark.slow
@pytest.mark.parametrize("found", [False, True])
def test_gradient_checkpointing_gives_the_same_images_and_is_left_as_found(guide, found):
    pipeline = load_pipeline(str(TINY_MODEL))
    plain = make_sampler(pipeline, guide).sample(PAIR, generators(2)).images
    if found:
        pipeline.unet.enable_gradient_checkpointing()
        pipeline.vae.enable_gradient_checkpointing()
    sampler = make_sampler(pipeline, guide, gradient_checkpointing=True)
    calls: list[int] = []
    pipeline.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    images = sampler.sample(PAIR, generators(2)).images
    torch.testing.assert_close(images, plain, atol=1e-5, rtol=0)
    assert (
        len(calls) == 5 + 2 + 2 + 2
    )  # steps, energy without guidance, look-ahead, its recomputation
    assert (
        pipeline.unet.is_gradient_checkpointing == pipeline.vae.is_gradient_checkpointing == found
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, DIRECT])
def test_the_pipeline_s_modes_and_gradients_are_left_as_found(guide, options):
    pipeline = load_pipeline(str(TINY_MODEL))
    pipeline.unet.requires_grad_(True)
    pipeline.unet.up_blocks[0].train()
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, guide)

    def state():
        modes = [module.training for part in parts for module in part.modules()]
        gradients = [(p.requires_grad, p.grad) for part in parts for p in part.parameters()]
        hooks = [len(m._forward_hooks) for part in parts for m in part.modules()]
        return modes, gradients, hooks, [b.clone().tolist() for b in guide.buffers()]

    before = state()
    make_sampler(pipeline, guide, **options).sample(PAIR, generators(2))
    assert state() == before
    assert torch.is_grad_enabled()
