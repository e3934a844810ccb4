"""Shortage of memory, parts of a batch, and the batch size that fits."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from dreamda.config import DreamDAConfig
from dreamda.sampler import DreamDASampler
from expansion.classifier.backbones import Classifier
from expansion.common.errors import InputError
from expansion.diffusion.encoding import LatentCodec
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.memory import FittingSampler, fitting_batch_size, is_shortage, power_of_two
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples

pytestmark = pytest.mark.slow  # whole expansions


def make_batch(num_sources: int, index: list[int], side: int = 32) -> Batch:
    return Batch(
        images=torch.rand(num_sources, 3, side, side, generator=torch.Generator().manual_seed(5)),
        sources=[f"s{i}" for i in range(num_sources)],
        source_index=torch.tensor(index),
        prompts=[f"a photo of the digit {i}" for i in range(len(index))],
        targets=torch.arange(len(index)),
        source_seeds=[100 + i for i in range(num_sources)],
    )


def generators(count: int):
    return lambda: [torch.Generator().manual_seed(i) for i in range(count)]


class GroupsOfThree(SamplerConfig):
    variants_per_group = 3


class ScarceSampler:
    """Has memory for `room` images at a time; `savings` times it can find room for one more."""

    config: SamplerConfig = SamplerConfig()

    def __init__(self, room: int, savings: int = 0, error: Exception | None = None):
        self.room, self.savings = room, savings
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.sizes: list[int] = []

    def sample(self, batch, drawn):
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        noise = torch.stack([torch.rand(3, 4, 4, generator=g) for g in drawn])
        real = batch.images[batch.source_index].mean(dim=(1, 2, 3))
        return Samples(noise, {"real": real, "target": batch.targets.float()})

    def save_memory(self):
        self.savings -= 1
        self.room += self.savings >= 0
        return self.savings >= 0


def test_a_part_of_a_batch_has_the_same_rows():
    batch = make_batch(3, [0, 0, 1, 2, 2, 1])
    part = batch.part(3, 6)
    assert (len(batch), len(part), len(batch.part(4, 9))) == (6, 3, 2)
    assert torch.equal(part.images[part.source_index], batch.images[batch.source_index[3:6]])
    assert [part.sources[i] for i in part.source_index] == ["s2", "s2", "s1"]
    assert [part.source_seeds[i] for i in part.source_index] == [102, 102, 101]
    assert part.prompts == batch.prompts[3:] and part.targets.tolist() == [3, 4, 5]
    assert len(part.images) == 2  # the real image that is not needed stays behind


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_shortage_halves_the_batch_and_keeps_the_noise(error):
    batch = make_batch(3, [0, 0, 1, 1, 2, 2, 2])
    fitting = FittingSampler(ScarceSampler(2, error=error))
    samples = fitting.sample(batch, generators(7))
    whole = ScarceSampler(7).sample(batch, generators(7)())
    assert torch.equal(samples.images, whole.images)
    assert all(torch.equal(samples.details[name], whole.details[name]) for name in whole.details)
    assert fitting.sampler.sizes == [7, 4, 2, 2, 2, 1]
    fitting.sample(batch, generators(7))
    assert fitting.sampler.sizes[6:] == [2, 2, 2, 1]  # it does not try more again


def test_memory_is_saved_before_the_batch_is_halved():
    fitting = FittingSampler(ScarceSampler(3, savings=1))
    fitting.sample(make_batch(1, [0] * 4), generators(4))
    assert fitting.sampler.sizes == [4, 4] and fitting.largest is None


def test_one_image_that_does_not_fit_ends_with_a_remedy():
    with pytest.raises(InputError, match="--resolution"):
        FittingSampler(ScarceSampler(0)).sample(make_batch(1, [0, 0]), generators(2))


def test_other_errors_are_no_shortage():
    assert not is_shortage(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        scarce = ScarceSampler(0, error=RuntimeError("shapes cannot be multiplied"))
        FittingSampler(scarce).sample(make_batch(1, [0]), generators(1))


def grouped(room: int) -> ScarceSampler:
    scarce = ScarceSampler(room)
    scarce.config = GroupsOfThree()
    return scarce


def test_a_batch_knows_its_groups_also_where_it_begins_within_an_image():
    batch = make_batch(2, [0] * 5 + [1] * 4)
    assert batch.numbers == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.groups(3) == [range(0, 3), range(3, 5), range(5, 8), range(8, 9)]
    part = batch.part(3, 8)
    assert part.numbers == [3, 4, 0, 1, 2] and part.groups(3) == [range(0, 2), range(2, 5)]
    assert batch.groups(1) == [range(i, i + 1) for i in range(9)]
    assert batch.groups(50) == [range(0, 5), range(5, 9)]
    group_of = batch.group_of(3)
    assert [group_of(row) for row in (0, 2, 3, 5)] == [("s0", 0), ("s0", 0), ("s0", 1), ("s1", 0)]


def test_variants_of_a_file_are_a_group_though_each_has_its_own_crop():
    batch = dataclasses.replace(make_batch(4, [0, 1, 2, 3]), files=["a", "a", "a", "b"])
    batch = dataclasses.replace(batch, numbers=[0, 1, 2, 0])
    assert batch.groups(3) == [range(0, 3), range(3, 4)] and batch.part(1, 3).groups(3) == [
        range(0, 2)
    ]


@pytest.mark.parametrize(("room", "sizes"), [(9, [9]), (5, [9, 5, 4]), (3, [9, 5, 3, 2, 3, 1])])
def test_a_shortage_never_cuts_a_group(room, sizes):
    """Of images with 5 and 4 variants: groups of 3, 2, 3 and 1."""
    batch, scarce = make_batch(2, [0] * 5 + [1] * 4), grouped(room)
    samples = FittingSampler(scarce).sample(batch, generators(9))
    assert scarce.sizes == sizes
    assert torch.equal(samples.images, ScarceSampler(9).sample(batch, generators(9)()).images)


def test_groups_that_are_smaller_than_they_may_be_are_divided_further():
    """One variant of each of four images: no group has more than one."""
    batch, scarce = make_batch(4, [0, 1, 2, 3]), grouped(1)
    samples = FittingSampler(scarce).sample(batch, generators(4))
    assert scarce.sizes[-4:] == [1, 1, 1, 1]
    assert torch.equal(samples.images, ScarceSampler(4).sample(batch, generators(4)()).images)


def test_a_group_that_does_not_fit_ends_with_a_remedy_that_tells_its_size():
    scarce = grouped(2)
    with pytest.raises(InputError, match="3 of the images that are computed together exceed"):
        FittingSampler(scarce).sample(make_batch(1, [0] * 6), generators(6))
    assert min(scarce.sizes) == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_size_that_is_found_holds_a_group_at_least(device):
    scarce = grouped(0)
    scarce.pipeline = SimpleNamespace(device=torch.device(device))
    assert fitting_batch_size(scarce, lambda n: make_batch(1, [0] * n, 2048), 1000) == 3


def samplers(pipeline):
    torch.manual_seed(0)  # a guide of random weights, the same in every run
    guide = Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False)
    steps = {"num_inference_steps": 4}
    guided = DistDiffConfig(encoder_weight_path="guide", guidance_step=2, **steps)
    distdiff = DistDiffSampler(pipeline, guided, guide)
    distdiff.use_prototypes(Prototypes(torch.rand(10, 128), torch.rand(10, 3, 128)))
    dreamda = DreamDASampler(pipeline, DreamDAConfig(**steps))
    return [Img2ImgSampler(pipeline, SamplerConfig(**steps)), distdiff, dreamda]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_real_samplers_give_the_same_images_in_parts(pipeline, number):
    sampler = samplers(pipeline)[number]
    batch = make_batch(2, [0, 0, 1, 1, 1])
    whole = sampler.sample(batch, generators(5)())
    fitting = FittingSampler(sampler)
    fitting.largest = 2
    parts = fitting.sample(batch, generators(5))
    torch.testing.assert_close(parts.images, whole.images, atol=2e-4, rtol=0)
    for name, values in whole.details.items():
        if not name.startswith(("saturated", "changed")):  # shares jump at a threshold
            torch.testing.assert_close(parts.details[name], values, atol=1e-3, rtol=1e-3)


def test_guidance_saves_memory_twice_and_still_gives_the_same_images(pipeline):
    sampler = samplers(pipeline)[1]
    batch = make_batch(1, [0, 0])
    before = sampler.sample(batch, generators(2)())
    for checkpoints in (False, True):
        assert sampler.save_memory()
        sizes: list[int] = []
        hook = pipeline.vae.decoder.register_forward_pre_hook(
            lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        after = sampler.sample(batch, generators(2)())
        hook.remove()
        assert sizes[0] == 1 and sizes[-1] == 2  # for the energy; for the images
        assert sampler.checkpoints == checkpoints
        torch.testing.assert_close(after.images, before.images, atol=1e-5, rtol=0)
    assert not sampler.save_memory()
    assert not samplers(pipeline)[0].save_memory()
    unguided = DistDiffSampler(pipeline, DistDiffConfig(optimize_targets="none"), None)
    assert not unguided.save_memory()


def test_the_decoder_works_in_parts_with_the_same_result(pipeline, monkeypatch):
    latents = torch.randn(5, 4, 8, 8)
    with torch.no_grad():
        whole = LatentCodec(pipeline).decode(latents)
        calls: list[int] = []
        hook = pipeline.vae.decoder.register_forward_pre_hook(
            lambda module, inputs: calls.append(len(inputs[0]))
        )
        monkeypatch.setattr("expansion.diffusion.encoding.LATENTS_AT_ONCE", 2 * 64)
        parts = LatentCodec(pipeline).decode(latents)
        hook.remove()
    assert calls == [2, 2, 1]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("room", "num_images", "size", "tried"),
    [
        (12, 10_000, 8, [2, 4, 8, 16]),
        (0, 10_000, 1, [2]),  # whether one fits is for the run to find out
        (1000, 10_000, 64, [2, 4, 8, 16, 32, 64]),
        (1000, 1000, 16, [2, 4, 8, 16]),  # trials of more would be much of the work
        (1000, 100, 8, [2, 4, 8]),
        (1000, 3, 2, [2]),
    ],
)
def test_on_a_gpu_the_batch_size_is_found_by_trying(room, num_images, size, tried):
    sampler = ScarceSampler(room, savings=3)
    sampler.pipeline = SimpleNamespace(device=torch.device("cuda"))
    assert fitting_batch_size(sampler, lambda n: make_batch(1, [0] * n), num_images) == size
    assert sampler.sizes == tried and sampler.savings == 3
    assert [power_of_two(n) for n in (0, 1, 2, 3, 17, 64)] == [1, 1, 2, 2, 16, 64]


@pytest.mark.parametrize(("side", "limit", "size"), [(512, 100, 8), (1024, 100, 2), (32, 50, 32)])
def test_without_a_gpu_the_pixels_decide_the_batch_size(side, limit, size):
    sampler = SimpleNamespace(
        pipeline=SimpleNamespace(device=torch.device("cpu")), config=SamplerConfig()
    )
    found = fitting_batch_size(sampler, lambda n: make_batch(1, [0] * n, side), limit)
    assert found == size


@pytest.mark.parametrize(("count", "room", "sides"), [(2, 1, [16, 16]), (1, 0, [12] * 4)])
def test_decoding_without_memory_goes_one_by_one_and_then_in_tiles(
    pipeline, monkeypatch, caplog, count, room, sides
):
    """Room for so many latents of 16 cells; tiles of 12 cells, of which four cover one."""
    monkeypatch.setattr("expansion.diffusion.encoding.TILE", 12)
    codec, decoded = LatentCodec(pipeline), []
    latents = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = codec.decode(latents)

    def scarce(module, inputs):
        decoded.append(inputs[0].shape[-2])
        if len(inputs[0]) > room and inputs[0].shape[-2] == 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = pipeline.vae.decoder.register_forward_pre_hook(scarce)
    try:
        with torch.no_grad():
            images = codec.decode(latents)
        assert codec.tiled == (room == 0) == ("in blended tiles" in caplog.text)
        with torch.enable_grad(), pytest.raises(torch.OutOfMemoryError):
            LatentCodec(pipeline).decode_raw(latents)
    finally:
        hook.remove()
    assert images.shape == (count, 3, 64, 64) and decoded[1] == sides[0]
    exact = room > 0
    torch.testing.assert_close(images, whole, atol=1e-4 if exact else 0.5, rtol=0)
    assert (images - whole).abs().mean() < (1e-5 if exact else 0.05)
