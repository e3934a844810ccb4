"""Stable Diffusion XL: equal to diffusers' pipelines; what is no whole base is refused."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from baselines.text2img import Text2ImgSampler
from baselines.text2img_config import Text2ImgConfig
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import PromptEncoder
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.model_files import check_model_folder, model_fingerprint, model_resolution
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.stable_diffusion import in_float32, load_pipeline, with_scheduler
from tests.helpers.tiny_checkpoints import PROMPTS, changed_copy, generators, make_batch

pytestmark = pytest.mark.slow  # whole samplers


def of_diffusers(sdxl, pipeline_class, config: SamplerConfig, **inputs) -> Tensor:
    """The images that a pipeline of diffusers makes with DDIM on the same networks."""
    scheduler = DDIMScheduler.from_config(sdxl.scheduler.config)
    theirs = pipeline_class(**{**sdxl.components, "scheduler": scheduler})
    theirs.set_progress_bar_config(disable=True)
    negative = [config.negative_prompt] * len(PROMPTS) if config.negative_prompt else None
    return theirs(
        prompt=PROMPTS,
        negative_prompt=negative,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        output_type="pt",
        generator=generators(),
        **inputs,
    ).images


@pytest.mark.parametrize(
    ("strength", "guidance_scale", "negative_prompt"),
    [(0.5, 5.0, ""), (0.75, 3.0, "a blurred nine"), (1.0, 1.0, "")],
)
def test_img2img_equals_the_pipeline_of_diffusers(sdxl, strength, guidance_scale, negative_prompt):
    config = SamplerConfig(
        num_inference_steps=8,
        strength=strength,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
    )
    batch = make_batch()
    ours = Img2ImgSampler(sdxl, config).sample(batch, generators()).images
    theirs = of_diffusers(
        sdxl,
        StableDiffusionXLImg2ImgPipeline,
        config,
        image=batch.images[batch.source_index],
        strength=strength,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours[1] - ours[2]).abs().max() > 0.05


def test_text2img_equals_the_pipeline_of_diffusers(sdxl):
    config = Text2ImgConfig(num_inference_steps=5, guidance_scale=4.0)
    ours = Text2ImgSampler(sdxl, config).sample(make_batch(), generators()).images
    theirs = of_diffusers(sdxl, StableDiffusionXLPipeline, config, height=32, width=32)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_u_net_is_told_the_size_of_the_image_and_that_nothing_was_cropped(sdxl):
    seen = []
    hook = sdxl.unet.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["added_cond_kwargs"]), with_kwargs=True
    )
    batch = dataclasses.replace(make_batch(), images=torch.rand(2, 3, 64, 48))
    config = SamplerConfig(num_inference_steps=2, guidance_scale=3.0)
    Img2ImgSampler(sdxl, config).sample(batch, generators())
    hook.remove()
    assert seen[0]["time_ids"].tolist() == [[64, 48, 0, 0, 64, 48]] * 6
    text = seen[0]["text_embeds"]
    assert not text[:3].any() and text[3:].any()  # the negative prompt is empty


def test_the_empty_text_is_zeros_only_where_the_checkpoint_was_trained_so(sdxl_dir, tmp_path):
    index = {"force_zeros_for_empty_prompt": False}
    other = load_pipeline(str(changed_copy(sdxl_dir, tmp_path / "model", index=index)))
    trained_so = PromptEncoder(load_pipeline(str(sdxl_dir)))(["", "a three"], None)
    encoded = PromptEncoder(other)(["", "a three"], None)
    assert not trained_so.prompt_embeds[0].any() and encoded.prompt_embeds[0].any()
    assert torch.equal(trained_so.prompt_embeds[1], encoded.prompt_embeds[1])
    assert trained_so.prompt_embeds.shape == (2, 77, 64)


def test_an_image_does_not_depend_on_its_batch(sdxl):
    sampler = Img2ImgSampler(sdxl, SamplerConfig(num_inference_steps=4, guidance_scale=3.0))
    whole = sampler.sample(make_batch(), generators()).images
    alone = sampler.sample(make_batch().part(2, 3), generators()[2:]).images
    torch.testing.assert_close(whole[2:], alone, atol=2e-5, rtol=0)


def test_in_float16_the_autoencoder_stays_in_float32_unless_it_needs_not(sdxl_dir, tmp_path):
    half = load_pipeline(str(sdxl_dir), "float16")
    assert {half.unet.dtype, half.text_encoder_2.dtype} == {torch.float16}
    assert half.vae.dtype == torch.float32
    with in_float32(half):
        assert half.unet.dtype == half.vae.dtype == torch.float32
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    safe = changed_copy(sdxl_dir, tmp_path / "model", vae={"force_upcast": False})
    assert load_pipeline(str(safe), "float16").vae.dtype == torch.float16
    assert load_pipeline(str(sdxl_dir), "bfloat16").vae.dtype == torch.bfloat16


def test_in_bfloat16_images_are_near_those_in_float32(sdxl_dir, sdxl):
    config = SamplerConfig(num_inference_steps=4, guidance_scale=3.0)
    half = Img2ImgSampler(load_pipeline(str(sdxl_dir), "bfloat16"), config)
    whole = Img2ImgSampler(sdxl, config)
    images = [s.sample(make_batch(), generators()).images for s in (half, whole)]
    assert (images[0] - images[1]).abs().mean() < 0.02


# What is refused, in one line, before weights load.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"index": {"_class_name": "StableDiffusionXLImg2ImgPipeline",
                       "text_encoder": [None, None], "tokenizer": [None, None],
                       "requires_aesthetics_score": True}},
            "is a refiner.*give the base, such as stabilityai/stable-diffusion-xl-base-1.0",
        ),
        ({"index": {"text_encoder_2": [None, None]}}, "its text_encoder_2 is .*None"),
        ({"index": {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "its text_encoder_2 is"),
        ({"unet": {"projection_class_embeddings_input_dim": 56}}, "56 numbers .* make 64"),
        ({"unet": {"cross_attention_dim": 24}}, "width 24, its text_encoder and text_encoder_2"),
        ({"unet": {"addition_embed_type": None}}, "its unet takes no sizes"),
        ({"unet": {"addition_embed_type": "image"}}, "addition_embed_type 'image'"),
        ({"unet": {"in_channels": 9}}, "9 channels.*inpainting"),
        ({"vae": {"latents_mean": [0.1] * 4}}, "moves latents by latents_mean"),
    ],
)  # fmt: skip
def test_what_is_no_whole_base_is_refused(sdxl_dir, tmp_path, changes, words):
    folder = changed_copy(sdxl_dir, tmp_path / "model", **changes)
    with pytest.raises(InputError) as error:
        check_model_folder(str(folder))
    assert re.search(words, str(error.value)) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize("what", ["text_encoder_2", "text_encoder_2/model.safetensors"])
def test_a_folder_without_the_second_text_encoder_is_refused(sdxl_dir, tmp_path, what):
    folder = changed_copy(sdxl_dir, tmp_path / "model")
    path = folder / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=r"lacks text_encoder_2.*copy the whole folder again"):
        check_model_folder(str(folder))


def test_weights_of_the_second_text_encoder_that_are_missing_are_not_drawn_at_random(
    sdxl_dir, tmp_path
):
    folder = changed_copy(sdxl_dir, tmp_path / "model")
    path = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(path)
    del state["text_projection.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(InputError, match="its text_encoder_2 lacks text_projection.weight"):
        load_pipeline(str(folder))


def test_the_identity_covers_both_text_encoders_and_the_default_size_is_the_checkpoint_s(
    sdxl_dir, tmp_path
):
    assert model_resolution(str(sdxl_dir)) == 32
    folder = changed_copy(sdxl_dir, tmp_path / "model")
    before = model_fingerprint(str(folder))
    assert before == model_fingerprint(str(sdxl_dir))
    for file in ("text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"):
        path = folder / file
        path.write_bytes(path.read_bytes()[:-1] + b" ")
        before, earlier = model_fingerprint(str(folder)), before
        assert before != earlier


def test_the_identity_tells_whether_the_empty_text_is_zeros(sdxl_dir, tmp_path):
    usual = model_fingerprint(str(sdxl_dir))
    changes = [{"force_zeros_for_empty_prompt": value} for value in (True, False)]
    folders = [changed_copy(sdxl_dir, tmp_path / str(i), index=c) for i, c in enumerate(changes)]
    as_usual, other = (model_fingerprint(str(folder)) for folder in folders)
    assert as_usual == usual != other


def test_another_scheduler_leaves_the_checkpoint_as_it_is(sdxl):
    made = with_scheduler(sdxl, DDIMScheduler())
    assert made.unet is sdxl.unet and made.scheduler is not sdxl.scheduler
    assert made.config.force_zeros_for_empty_prompt is True
