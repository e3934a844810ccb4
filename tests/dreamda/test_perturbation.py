"""Noise on features and latents, and the hooks that put it there: statistics, places, no trace."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from dreamda.perturbation import GaussianNoise, forked_features, perturbed_features
from tests.diffusion.test_denoising import generators

FEATURES = ("bottleneck", "encoder", "decoder")


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
