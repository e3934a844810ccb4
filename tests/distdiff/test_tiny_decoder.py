"""A tiny decoder in the place of the checkpoint's (`--guidance_decoder`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distdiff.energy import ImageEnergy
from distdiff.sampler import DistDiffSampler
from expansion.common.errors import InputError
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.stable_diffusion import load_tiny_decoder
from tests.helpers.distdiff_parts import (
    PAIR,
    PROTOTYPES,
    distdiff,
    generators,
    make_sampler,
)


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory) -> str:
    """Folder of an untrained AutoencoderTiny for latents that are a quarter of the image's side."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    channels = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    blocks = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
    folder = tmp_path_factory.mktemp("tiny_decoder")
    AutoencoderTiny(**channels, **blocks, latent_channels=4).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_tiny_decoder_makes_the_images_of_the_energy_and_no_others(pipeline, guide, tiny_decoder):
    config = distdiff(guidance_decoder=tiny_decoder)
    decoder = load_tiny_decoder(tiny_decoder, pipeline)
    sampler = DistDiffSampler(pipeline, config, guide, decoder)
    sampler.use_prototypes(PROTOTYPES)
    latents = torch.randn(2, 4, 8, 8)
    targets = torch.tensor([1, 2])
    energy = ImageEnergy(guide, PROTOTYPES, config)
    with torch.no_grad():
        expected = energy(decoder.decode(latents).sample, targets)
        torch.testing.assert_close(sampler.guidance().energy([latents], targets), expected)
    guided = sampler.sample(PAIR, generators(2)).images
    exact = make_sampler(pipeline, guide).sample(PAIR, generators(2)).images
    plain = Img2ImgSampler(pipeline, config).sample(PAIR, generators(2)).images
    assert (guided - exact).abs().max() > 1e-3 and (guided - plain).abs().max() > 1e-3
    assert (guided - plain).abs().mean() < 0.1  # the images themselves come from the checkpoint


def test_the_weights_of_a_tiny_decoder_decide_the_images(tiny_decoder):
    (weights,) = Path(tiny_decoder).glob("*.safetensors")
    assert distdiff(guidance_decoder=tiny_decoder).input_files()["guidance_decoder"] == str(weights)
    assert "guidance_decoder" not in distdiff(guidance_decoder="madebyollin/taesd").input_files()


def test_a_tiny_decoder_of_another_checkpoint_or_none_is_refused(pipeline, tmp_path):
    from diffusers import AutoencoderTiny

    with pytest.raises(InputError, match="cannot load the tiny decoder"):
        load_tiny_decoder(str(tmp_path), pipeline)
    AutoencoderTiny().save_pretrained(tmp_path)  # of Stable Diffusion: 8 times
    with pytest.raises(InputError, match="8 times, the checkpoint 4 times"):
        load_tiny_decoder(str(tmp_path), pipeline)
