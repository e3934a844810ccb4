"""DreamDA's perturbation and sampler on the tiny checkpoint, with diffusers' pipeline as oracle."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import CycleDiffusionPipeline, DDIMScheduler, UNet2DConditionModel

from dreamda.config import DreamDAConfig
from dreamda.perturbation import GaussianNoise, forked_features, perturbed_features
from dreamda.sampler import DreamDASampler
from expansion.errors import InputError
from expansion.sampler import Batch
from tests.test_denoising import PROMPTS, generators, make_batch

STEPS = {"num_inference_steps": 10, "guidance_scale": 3.0}
FEATURES = ("bottleneck", "encoder", "decoder")


def sample(pipeline, batch: Batch | None = None, drawn: list | None = None, **options):
    sampler = DreamDASampler(pipeline, DreamDAConfig(**{**STEPS, **options}))
    return sampler.sample(batch or make_batch(), drawn or generators()).images


def hooks_of(unet) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


@pytest.fixture(scope="module")
def deep_unet() -> UNet2DConditionModel:
    """Three levels, two layers a block, linear projections, as SD 2.x has."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=12,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
    ).eval()


def unet_inputs(unet, rows: int = 3):
    torch.manual_seed(1)
    return (
        torch.randn(rows, 4, 8, 8),
        torch.tensor(500),
        torch.randn(rows, 5, unet.config.cross_attention_dim),
    )


# --- noise ------------------------------------------------------------------------------------


def test_absolute_noise_has_the_asked_standard_deviation_and_zero_mean():
    noise = GaussianNoise(3.0, relative=False, generators=generators(2), shared=False)
    features = 7 + 0.5 * torch.randn(4, 64, 16, 16)
    added = noise(features) - features
    assert added.mean(dim=(1, 2, 3)).abs().max() < 0.1
    torch.testing.assert_close(added.std(dim=(1, 2, 3)), torch.full((4,), 3.0), atol=0.06, rtol=0)
    torch.testing.assert_close(noise.mean_std(), torch.full((2,), 0.5), atol=0.01, rtol=0)


def test_relative_noise_is_in_units_of_each_images_own_deviation():
    noise = GaussianNoise(2.0, relative=True, generators=generators(2), shared=False)
    scales = torch.tensor([0.5, 4.0, 0.5, 4.0])[:, None, None, None]  # rows: image 0, 1, 0, 1
    features = scales * torch.randn(4, 64, 16, 16)
    added = (noise(features) - features).std(dim=(1, 2, 3))
    torch.testing.assert_close(added, torch.tensor([1.0, 8.0, 1.0, 8.0]), atol=0, rtol=0.03)


def test_shared_noise_is_equal_in_both_guidance_rows_and_released_noise_is_not():
    zeros = torch.zeros(4, 2, 3, 3)
    shared = GaussianNoise(1.0, relative=False, generators=generators(2), shared=True)(zeros)
    torch.testing.assert_close(shared[:2], shared[2:])
    free = GaussianNoise(1.0, relative=False, generators=generators(2), shared=False)(zeros)
    assert (free[:2] - free[2:]).abs().mean() > 0.5
    assert (shared[0] - shared[1]).abs().mean() > 0.5  # images never share


def test_an_images_noise_does_not_depend_on_its_neighbours_and_changes_with_every_call():
    zeros = torch.zeros(4, 2, 3, 3)
    both = GaussianNoise(1.0, relative=False, generators=generators(2), shared=False)
    alone = GaussianNoise(1.0, relative=False, generators=generators(1, first=1), shared=False)
    first, second = both(zeros), both(zeros)
    assert torch.equal(first[1::2], alone(zeros[:2])) and torch.equal(
        second[1::2], alone(zeros[:2])
    )
    assert (first - second).abs().mean() > 0.5


def test_noise_keeps_the_features_number_format():
    noise = GaussianNoise(1.0, relative=True, generators=generators(2), shared=True)
    assert noise(torch.ones(4, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


# --- hooks ------------------------------------------------------------------------------------


def outputs_of(unet, inputs, location, change) -> tuple[dict[str, list], torch.Tensor]:
    """What every block puts out, and the prediction, with `change` acting at `location`."""
    sample_, t, context = inputs
    seen: dict[str, list] = {"encoder": [], "bottleneck": [], "decoder": [], "skips": []}

    def watch(name):
        def hook(module, positional, output):
            if isinstance(output, tuple):
                seen["skips"] += output[1]
                output = output[0]
            seen[name].append(output)

        return hook

    with torch.no_grad(), perturbed_features(unet, location, change):
        blocks = [("encoder", b) for b in unet.down_blocks]
        blocks += [("bottleneck", unet.mid_block), *(("decoder", b) for b in unet.up_blocks)]
        handles = [block.register_forward_hook(watch(name)) for name, block in blocks]
        prediction = unet(sample_, t, encoder_hidden_states=context).sample
        for handle in handles:
            handle.remove()
    return seen, prediction


def test_each_location_changes_what_it_says_and_nothing_before_it(deep_unet):
    inputs = unet_inputs(deep_unet)
    clean, prediction = outputs_of(deep_unet, inputs, "bottleneck", lambda f: f)
    for location, untouched in (
        ("bottleneck", ("encoder", "skips")),
        ("encoder", ()),
        ("decoder", ("encoder", "skips", "bottleneck")),
    ):
        changed, perturbed = outputs_of(deep_unet, inputs, location, lambda f: f + 1)
        first = changed[location][0] - clean[location][0]
        torch.testing.assert_close(first, torch.ones_like(first), atol=1e-5, rtol=0)
        for name in untouched:
            assert all(map(torch.equal, changed[name], clean[name]))
        assert (perturbed - prediction).abs().mean() > 1e-3


@pytest.mark.parametrize("location, count", [("bottleneck", 1), ("encoder", 3), ("decoder", 3)])
def test_every_block_of_a_location_is_perturbed_once(deep_unet, location, count):
    calls = []

    def change(features):
        calls.append(features.shape[1])
        return features

    _, same = outputs_of(deep_unet, unet_inputs(deep_unet), location, change)
    assert len(calls) == count
    sample_, t, context = unet_inputs(deep_unet)
    with torch.no_grad():
        expected = deep_unet(sample_, t, encoder_hidden_states=context).sample
    assert torch.equal(same, expected)


def test_a_down_blocks_output_is_perturbed_where_it_is_a_skip_too(deep_unet):
    inputs = unet_inputs(deep_unet)
    seen, _ = outputs_of(deep_unet, inputs, "encoder", lambda f: f + 100)
    per_block = [3, 3, 2]  # two resnets and, but in the last block, a downsampler
    assert len(seen["skips"]) == sum(per_block)
    for i, output in enumerate(seen["encoder"]):
        skips = seen["skips"][sum(per_block[:i]) : sum(per_block[: i + 1])]
        assert skips[-1] is output and output.mean() > 50
        assert skips[0].mean() < 50 or i > 0  # the first block's other skips come before any noise


@pytest.mark.parametrize("location", FEATURES)
def test_the_forked_forward_equals_two_whole_ones(deep_unet, location):
    sample_, t, context = unet_inputs(deep_unet)

    def change(features):
        return 1.5 * features + 0.3

    with torch.no_grad():
        clean = deep_unet(sample_, t, encoder_hidden_states=context).sample
        with perturbed_features(deep_unet, location, change):
            perturbed = deep_unet(sample_, t, encoder_hidden_states=context).sample
        with forked_features(deep_unet, location, change):
            forked = deep_unet(sample_, t, encoder_hidden_states=context).sample
        again = deep_unet(sample_, t, encoder_hidden_states=context).sample
    torch.testing.assert_close(forked, torch.cat([clean, perturbed]), atol=1e-5, rtol=0)
    assert (clean - perturbed).abs().max() > 1e-2
    assert torch.equal(again, clean)


def test_down_and_middle_blocks_run_once_for_clean_and_perturbed(deep_unet):
    sample_, t, context = unet_inputs(deep_unet)
    rows = {}

    def count(name):
        return lambda module, positional, named: rows.__setitem__(
            name, len(named.get("hidden_states", positional[0] if positional else ()))
        )

    blocks = {"down": deep_unet.down_blocks[0], "up": deep_unet.up_blocks[0]}
    handles = [
        block.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, block in blocks.items()
    ]
    with torch.no_grad(), forked_features(deep_unet, "bottleneck", lambda f: f):
        deep_unet(sample_, t, encoder_hidden_states=context)
    for handle in handles:
        handle.remove()
    assert rows == {"down": 3, "up": 6}


@pytest.mark.parametrize("context", [perturbed_features, forked_features])
@pytest.mark.parametrize("location", FEATURES)
def test_hooks_leave_no_trace_after_an_exception(deep_unet, context, location):
    def fail(features):
        raise ArithmeticError

    before = hooks_of(deep_unet)
    sample_, t, embeds = unet_inputs(deep_unet)
    with pytest.raises(ArithmeticError), context(deep_unet, location, fail):
        assert hooks_of(deep_unet) > before
        deep_unet(sample_, t, encoder_hidden_states=embeds)
    assert hooks_of(deep_unet) == before


# --- sampler ----------------------------------------------------------------------------------


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
        for prompt, i, g in zip(batch.prompts, batch.source_index, drawn)
    ]
    return torch.cat(images)


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
    embeds = sampler.embed_prompts(batch.prompts)
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


def test_latent_locations_by_hand(pipeline):
    """xT: before the first step; x0: after the last; xt: between two."""
    options = dict(num_inference_steps=10, strength=0.2, guidance_scale=3.0, noise_scale=0.7)
    batch = make_batch(slice(0, 1))
    for location, place in (("xT", 0), ("xt", 1), ("x0", 2)):
        config = DreamDAConfig(**options, location=location)
        sampler = DreamDASampler(pipeline, config)
        ours = sampler.sample(batch, generators(1)).images
        (inversion,) = sampler._invert(batch, generators(1))
        embeds = sampler.embed_prompts(batch.prompts)
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


def test_a_kept_inversion_gives_the_same_bytes_as_a_fresh_one(pipeline, counted_rows):
    sampler = DreamDASampler(pipeline, DreamDAConfig(**STEPS))
    first = sampler.sample(make_batch(), generators()).images
    fresh = sum(counted_rows)
    second = sampler.sample(make_batch(), generators()).images
    assert torch.equal(first, second)
    assert sum(counted_rows) - fresh == fresh - 2 * 8


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


@pytest.mark.parametrize("location", [*FEATURES, "xt", "xT", "x0"])
def test_more_noise_departs_further(pipeline, location):
    none, some, more = (
        sample(pipeline, location=location, noise_scale=scale, noise_scale_mode="relative")
        for scale in (0.0, 0.3, 1.5)
    )
    near, far = (some - none).abs().mean(), (more - none).abs().mean()
    assert 1e-4 < near < far


def test_a_sampler_leaves_the_model_as_it_was(pipeline):
    before = hooks_of(pipeline.unet)
    sample(pipeline, perturb="eq6")
    assert hooks_of(pipeline.unet) == before


def test_details_say_what_was_perturbed_and_how_far_the_image_went(pipeline):
    batch = make_batch()
    sampler = DreamDASampler(pipeline, DreamDAConfig(**STEPS))
    samples = sampler.sample(batch, generators())
    for i, row in enumerate(samples.details):
        error = samples.images[i] - batch.images[batch.source_index[i]]
        assert row["distance_to_real"] == pytest.approx(
            error.square().mean().sqrt().item(), abs=1e-4
        )
        assert 0.5 < row["perturbed_std"] < 4  # the tiny U-Net's bottleneck: 1.2-1.6


def test_bfloat16_networks_keep_float32_inversions():
    from expansion.stable_diffusion import load_pipeline
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
        ({"noise_scale": -1.0}, "noise_scale -1"),
        ({"source_batch_size": 0}, "source_batch_size 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DreamDAConfig(**options)
