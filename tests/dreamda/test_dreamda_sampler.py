"""DreamDA's sampler on the tiny checkpoint, with diffusers' pipeline as oracle."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import CycleDiffusionPipeline, DDIMScheduler

from dreamda.config import DreamDAConfig
from dreamda.perturbation import GaussianNoise, perturbed_features
from dreamda.sampler import DreamDASampler
from expansion.common.errors import InputError
from expansion.diffusion.samples import Batch
from tests.diffusion.test_denoising import PROMPTS, generators, make_batch
from tests.dreamda.test_perturbation import FEATURES, hooks_of

STEPS = {"num_inference_steps": 10, "guidance_scale": 3.0}


def sample(pipeline, batch: Batch | None = None, drawn: list | None = None, **options):
    sampler = DreamDASampler(pipeline, DreamDAConfig(**{**STEPS, **options}))
    return sampler.sample(batch or make_batch(), drawn or generators()).images


def cycle_diffusion(pipeline, batch: Batch, drawn: list, **options) -> torch.Tensor:
    """The same images from diffusers' pipeline, one by one: with guidance it ignores the rest."""
    parts = {
        **pipeline.components,
        "scheduler": DDIMScheduler.from_config(pipeline.scheduler.config),
    }
    parts.pop("image_encoder", None)
    theirs = CycleDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    images = [
        theirs(
            prompt=prompt, image=batch.images[i][None], generator=g, output_type="pt", **options
        ).images
        for prompt, i, g in zip(batch.prompts, batch.source_index, drawn, strict=True)
    ]
    return torch.cat(images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "eta, source_prompt, source_guidance_scale",
    [(1.0, "", 1.5), (0.4, "", 1.0), (1.0, "a two", 2.0)],
)
@pytest.mark.parametrize("perturb", ["released", "eq6"])
def test_without_noise_both_forms_equal_the_pipeline_of_diffusers(
    pipeline, perturb, eta, source_prompt, source_guidance_scale
):
    common = dict(
        num_inference_steps=20,
        strength=0.8,
        guidance_scale=3.0,
        eta=eta,
        source_prompt=source_prompt,
        source_guidance_scale=source_guidance_scale,
    )
    batch = make_batch()
    ours = sample(
        pipeline, batch, noise_scale=0.0, perturb=perturb, inversion_per="variant", **common
    )
    theirs = cycle_diffusion(pipeline, batch, generators(), **common)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 0.01  # the prompts and the noise differ


def test_inversion_and_reverse_run_under_one_prompt_give_the_image_back(pipeline):
    """The round trip with the U-Net itself; only the autoencoder remains between both."""
    batch = dataclasses.replace(make_batch(), prompts=[""] * 4)
    sampler = DreamDASampler(pipeline, DreamDAConfig(**STEPS, noise_scale=0.0))
    ours = sampler.sample(batch, generators()).images
    for index, source, seed in ((0, "a", 7), (2, "b", 8)):
        image = batch.images[batch.source_index[index]]
        latents = sampler.codec.encode_one(source, image, torch.Generator().manual_seed(seed))
        expected = sampler.codec.decode(latents)[0]
        torch.testing.assert_close(ours[index], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("perturb", ["released", "eq6"])
@pytest.mark.parametrize("location", FEATURES)
def test_a_perturbed_step_by_hand(pipeline, perturb, location):
    """One step: the perturbed prediction in the whole step, or in its x0hat alone (Eq. 6)."""
    config = DreamDAConfig(
        num_inference_steps=10,
        strength=0.1,
        guidance_scale=3.0,
        perturb=perturb,
        location=location,
        noise_scale=2.0,
    )
    sampler = DreamDASampler(pipeline, config)
    batch = make_batch(slice(0, 1))
    ours = sampler.sample(batch, generators(1)).images

    (inversion,) = sampler._invert(batch, generators(1))
    x, t = inversion.start, sampler.denoiser.timesteps[0]
    embeds = sampler.embed_prompts(batch)
    noise = GaussianNoise(2.0, relative=False, generators=generators(1), shared=perturb == "eq6")
    scheduler = sampler.denoiser.scheduler
    a_t, a_p = scheduler.alphas_cumprod[t], scheduler.final_alpha_cumprod
    sigma2 = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    with torch.no_grad():
        clean = sampler.denoiser.predict(x, t, embeds)
        with perturbed_features(pipeline.unet, location, noise):
            perturbed = sampler.denoiser.predict(x, t, embeds)
        x0hat = (x - (1 - a_t).sqrt() * perturbed) / a_t.sqrt()
        eps = clean if perturb == "eq6" else perturbed
        x = a_p.sqrt() * x0hat + (1 - a_p - sigma2).sqrt() * eps + inversion.corrections[0]
        expected = sampler.codec.decode(x)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert (clean - perturbed).abs().max() > 1e-2


@pytest.mark.slow
def test_latent_locations_by_hand(pipeline):
    """xT: before the first step; x0: after the last; xt: between two."""
    options = dict(num_inference_steps=10, strength=0.2, guidance_scale=3.0, noise_scale=0.7)
    batch = make_batch(slice(0, 1))
    for location, place in (("xT", 0), ("xt", 1), ("x0", 2)):
        config = DreamDAConfig(**options, location=location)
        sampler = DreamDASampler(pipeline, config)
        ours = sampler.sample(batch, generators(1)).images
        (inversion,) = sampler._invert(batch, generators(1))
        embeds = sampler.embed_prompts(batch)
        drawn = 0.7 * torch.randn(1, 4, 8, 8, generator=generators(1)[0])
        x = inversion.start + (drawn if place == 0 else 0)
        with torch.no_grad():
            for i, t in enumerate(sampler.denoiser.timesteps):
                split = sampler.process.split(i, x, sampler.denoiser.predict(x, t, embeds))
                x = sampler.process.mean(i, *split) + inversion.corrections[i]
                x = x + (drawn if place == i + 1 else 0)
            expected = sampler.codec.decode(x)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.fixture
def counted_rows(pipeline):
    """Rows of every call of the U-Net."""
    rows: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(len(inputs[0])), with_kwargs=True
    )
    yield rows
    handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5])
def test_80_steps_take_160_rows_per_image_and_80_per_inversion(pipeline, counted_rows, count):
    config = DreamDAConfig(guidance_scale=7.5)
    full = make_batch()
    batch = dataclasses.replace(
        full,
        source_index=torch.tensor([0, 1]).repeat_interleave(count),
        prompts=PROMPTS[:1] * 2 * count,
        targets=torch.zeros(2 * count),
    )
    DreamDASampler(pipeline, config).sample(batch, generators(2 * count))
    assert sum(counted_rows) == 2 * count * (160 + 80 / count)
    assert config.unet_rows_per_image(count) == 160 + 80 / count
    assert len(counted_rows) == 80 + 2 * 5  # all variants together; inversions 16 steps at a time


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, rows",
    [
        ({"inversion_per": "variant"}, 24),
        ({"source_prompt": "a two"}, 16 + 16 / 2),
        ({"source_prompt": "a two", "source_guidance_scale": 1.0}, 16 + 8 / 2),
        ({"source_prompt": "a two", "negative_prompt": "a two"}, 16 + 8 / 2),
        ({"guidance_scale": 1.0}, 8 + 8 / 2),
        ({"inversion": "ddim"}, 16 + 8 / 2),
    ],
)
def test_unet_rows_are_those_that_the_plan_announces(pipeline, counted_rows, options, rows):
    sample(pipeline, **options)
    assert sum(counted_rows) == 4 * rows
    assert DreamDAConfig(**{**STEPS, **options}).unet_rows_per_image(2) == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"perturb": "eq6"},
        {"inversion_per": "variant"},
        {"inversion": "ddim"},
        {"location": "xt", "noise_scale": 0.2},
    ],
    ids=str,
)
def test_an_image_is_the_same_in_any_batch(pipeline, options):
    whole = sample(pipeline, **options)
    assert (whole[0] - whole[1]).abs().max() > 0.01
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        drawn = generators()[rows]
        part = sample(pipeline, make_batch(rows), drawn, **options)
        torch.testing.assert_close(part, whole[rows], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_kept_inversion_gives_the_same_bytes_as_a_fresh_one(pipeline, counted_rows):
    sampler = DreamDASampler(pipeline, DreamDAConfig(**STEPS))
    first = sampler.sample(make_batch(), generators()).images
    fresh = sum(counted_rows)
    second = sampler.sample(make_batch(), generators()).images
    assert torch.equal(first, second)
    assert sum(counted_rows) - fresh == fresh - 2 * 8


@pytest.mark.slow
def test_variants_share_their_inversion_unless_each_has_its_own(pipeline):
    batch = dataclasses.replace(make_batch(), prompts=PROMPTS[:1] * 4)
    shared = sample(pipeline, batch, noise_scale=0.0)
    torch.testing.assert_close(shared[0], shared[1], atol=1e-5, rtol=0)
    own = sample(pipeline, batch, noise_scale=0.0, inversion_per="variant")
    assert (own[0] - own[1]).abs().max() > 0.01
    other = dataclasses.replace(batch, source_seeds=(9, 8))
    changed = sample(pipeline, other, noise_scale=0.0)
    assert (changed[0] - shared[0]).abs().max() > 0.01
    torch.testing.assert_close(changed[2:], shared[2:], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("location", [*FEATURES, "xt", "xT", "x0"])
def test_more_noise_departs_further(pipeline, location):
    none, some, more = (
        sample(pipeline, location=location, noise_scale=scale, noise_scale_mode="relative")
        for scale in (0.0, 0.3, 1.5)
    )
    near, far = (some - none).abs().mean(), (more - none).abs().mean()
    assert 1e-4 < near < far


def test_a_network_without_a_middle_block_is_refused(pipeline, monkeypatch):
    monkeypatch.setitem(pipeline.unet._modules, "mid_block", None)
    with pytest.raises(InputError, match="no middle block.*--location xt"):
        DreamDASampler(pipeline, DreamDAConfig(num_inference_steps=5))
    config = DreamDAConfig(num_inference_steps=5, location="xt", perturb="released")
    images = DreamDASampler(pipeline, config).sample(make_batch(), generators()).images
    assert images.isfinite().all()


def test_a_sampler_leaves_the_model_as_it_was(pipeline):
    before = hooks_of(pipeline.unet)
    sample(pipeline, perturb="eq6")
    assert hooks_of(pipeline.unet) == before


def test_details_say_what_was_perturbed_and_how_far_the_image_went(pipeline):
    batch = make_batch()
    sampler = DreamDASampler(pipeline, DreamDAConfig(**STEPS))
    samples = sampler.sample(batch, generators())
    errors = samples.images - batch.images[batch.source_index]
    expected = errors.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(samples.details["distance_to_real"], expected, atol=1e-4, rtol=0)
    stds = samples.details["perturbed_std"]  # of the tiny U-Net's bottleneck: 1.2-1.6
    assert stds.shape == (len(batch),) and 0.5 < stds.min() and stds.max() < 4


@pytest.mark.slow
def test_bfloat16_networks_keep_float32_inversions():
    from expansion.diffusion.stable_diffusion import load_pipeline
    from tests.conftest import TINY_MODEL

    half = load_pipeline(str(TINY_MODEL), "bfloat16")
    sampler = DreamDASampler(half, DreamDAConfig(**STEPS))
    images = sampler.sample(make_batch(), generators()).images
    (inversion, *_) = sampler.inversions.values.values()
    assert inversion.start.dtype == inversion.corrections.dtype == images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eta": 0.0}, "eta 0: inversion cycle.*--inversion ddim"),
        ({"eta": 1.5}, "eta 1.5"),
        ({"inversion": "ddim", "eta": 1.0}, "eta 1: inversion ddim is deterministic"),
        ({"perturb": "eq6", "location": "xt"}, "location xt perturbs latents"),
        ({"location": "xt", "num_inference_steps": 1, "strength": 1.0}, "1 steps runs one alone"),
        ({"location": "xt", "strength": 0.01}, "strength 0.01 of 100 steps runs one alone"),
        ({"noise_scale": -1.0}, "noise_scale -1"),
        ({"source_batch_size": 0}, "source_batch_size 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DreamDAConfig(**options)
