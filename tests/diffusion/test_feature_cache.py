"""Steps that reuse the U-Net's deep features."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dreamda.config import DreamDAConfig
from expansion.common.errors import InputError
from expansion.diffusion.feature_cache import FeatureCache
from expansion.diffusion.sampler_config import SamplerConfig
from tests.distdiff.conftest import guide
from tests.helpers.distdiff_parts import PAIR, generators, make_sampler

__all__ = ["guide"]  # a fixture


@pytest.fixture
def calls(pipeline):
    """Calls the U-Net with rows of noise at timesteps; gives outputs and operations of each."""

    def run(interval: int, inputs: list[tuple[int, int, int]]):
        cache, outputs, operations = FeatureCache(pipeline.unet, interval), [], []
        with torch.no_grad(), cache.steps(range(len(inputs))) as taken:
            for number in taken:
                rows, seed, timestep = inputs[number]
                latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
                text = torch.ones(rows, 77, 64)
                with FlopCounterMode(display=False) as counter:
                    made = pipeline.unet(latents, timestep, encoder_hidden_states=text).sample
                outputs.append(made)
                operations.append(counter.get_total_flops())
        assert not any("forward" in vars(block) for block in cache.deep) and not cache.kept
        return outputs, operations

    return run


def test_every_third_step_computes_all(calls):
    inputs = [(2, i, 900 - 40 * i) for i in range(7)]
    whole, all_operations = calls(1, inputs)
    cached, operations = calls(3, inputs)
    full = [op == most for op, most in zip(operations, all_operations, strict=True)]
    assert full == [True, False, False, True, False, False, True]
    assert len({op for op in operations if op != max(operations)}) == 1
    equal = [torch.equal(a, b) for a, b in zip(whole, cached, strict=True)]
    assert equal == full


def test_a_network_without_a_middle_block_reuses_what_it_has(pipeline, calls, monkeypatch):
    monkeypatch.setitem(pipeline.unet._modules, "mid_block", None)
    inputs = [(2, i, 900 - 40 * i) for i in range(2)]
    whole, all_operations = calls(1, inputs)
    cached, operations = calls(2, inputs)
    assert torch.equal(cached[0], whole[0]) and operations[1] < all_operations[1]


def test_a_step_with_the_same_inputs_gives_the_same_output_from_what_is_kept(calls):
    (first, again), (all_operations, fewer) = calls(2, [(2, 0, 500), (2, 0, 500)])
    assert torch.equal(first, again) and fewer < all_operations


def test_another_number_of_rows_computes_all_anew(calls):
    """As where guidance ends in the midst of the steps."""
    inputs = [(4, 0, 500), (2, 1, 460), (2, 2, 420)]
    whole, _ = calls(1, inputs)
    cached, operations = calls(3, inputs)
    assert torch.equal(cached[1], whole[1]) and not torch.equal(cached[2], whole[2])
    assert operations[2] < operations[1]


def test_a_fault_inside_leaves_the_network_as_it_was(pipeline):
    cache = FeatureCache(pipeline.unet, 2)
    with pytest.raises(RuntimeError, match="stop"), cache.steps([9, 5, 1]):
        raise RuntimeError("stop")
    assert not any("forward" in vars(block) for block in cache.deep)


@pytest.fixture
def whole_calls(pipeline):
    """Operations of every call of the U-Net, in billions, while a function runs."""

    def counted(run) -> list[float]:
        found = []
        forward = pipeline.unet.forward

        def count(*inputs, **options):
            with FlopCounterMode(display=False) as counter:
                output = forward(*inputs, **options)
            found.append(counter.get_total_flops())
            return output

        pipeline.unet.forward = count
        try:
            run()
        finally:
            del pipeline.unet.forward
        return found

    return counted


def test_distdiff_reuses_features_outside_its_guided_window_alone(pipeline, guide, whole_calls):
    """Window 301 201 of the steps 901, ..., 1; its look-ahead computes all, too."""
    options = {"strength": 1.0, "cache_interval": 5, "log_energy": False}
    sampler = make_sampler(pipeline, guide, **options)
    operations = whole_calls(lambda: sampler.sample(PAIR, generators(2)))
    full = [value == max(operations) for value in operations]
    before, look_ahead, window, after = (
        [True, *[False] * 4, True],
        [True] * 2,
        [True] * 2,
        [True, False],
    )
    assert full == before + look_ahead + window + after


def test_a_method_that_changes_the_features_refuses_to_reuse_them():
    with pytest.raises(InputError, match="cache_interval 2: this method changes"):
        DreamDAConfig(cache_interval=2)
    with pytest.raises(InputError, match="cache_interval 0: give a positive number"):
        SamplerConfig(cache_interval=0)
