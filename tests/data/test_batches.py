"""Batches whose order and augmentation depend on (seed, position), and on nothing else."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from expansion.classifier.transforms import network_input, squash
from expansion.data.batches import (
    InOrder,
    SeededImages,
    StreamBatches,
    stream_indices,
    stream_loader,
)
from expansion.data.datasets import load_dataset
from expansion.images.pixel_cache import PixelCache
from expansion.images.tensors import to_pixels, to_unit_tensor
from expansion.training.objectives import OnDevice


@pytest.fixture(scope="module")
def records(digits_dir):
    return load_dataset("digits", digits_dir).records("train")[:24]


@pytest.fixture
def images(records):
    noisy = v2.Compose(
        [v2.RandomCrop(28), v2.RandomRotation(20), to_unit_tensor, v2.GaussianNoise()]
    )
    return SeededImages(records, noisy)


def flat(batches) -> list[tuple[int, int]]:
    return [sample for batch in batches for sample in batch]


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 3), (7, 7), (3, 8), (1, 4), (16, 1)])
def test_each_pass_holds_every_image_once_whatever_the_batch_size(num_items, batch_size):
    count = -(-4 * num_items // batch_size)
    stream = flat(StreamBatches(num_items, [batch_size] * count, seed=5))
    assert len(stream) == count * batch_size
    passes = [[index for index, _ in stream[e * num_items : (e + 1) * num_items]] for e in range(4)]
    assert all(sorted(order) == list(range(num_items)) for order in passes)
    if num_items > 5:
        assert len(set(map(tuple, passes))) == 4
    assert len({seed for _, seed in stream}) == len(stream)


def test_the_stream_does_not_depend_on_how_it_is_cut():
    whole = stream_indices(9, 0, 40, seed=2)
    assert whole == [i for start in range(0, 40, 8) for i in stream_indices(9, start, 8, seed=2)]
    assert whole[13:20] == stream_indices(9, 13, 7, seed=2)
    one_by_one = flat(StreamBatches(9, [1] * 40, seed=2))
    assert flat(StreamBatches(9, [5, 8, 8, 19], seed=2)) == one_by_one
    assert whole != stream_indices(9, 0, 40, seed=3)


@pytest.mark.parametrize("first", [0, 1, 4, 6, 7])
def test_a_resumed_stream_is_the_tail_of_the_whole(first):
    sizes = [4, 4, 2, 4, 4, 2, 3]
    whole = list(StreamBatches(10, sizes, seed=1))
    resumed = StreamBatches(10, sizes, seed=1, first=first)
    assert list(resumed) == whole[first:]
    assert len(resumed) == len(whole) - first
    assert [len(batch) for batch in whole] == sizes


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_partition_each_batch(world_size):
    sizes = [6, 5, 8]
    whole = list(StreamBatches(8, sizes, seed=1))
    shares = [
        list(StreamBatches(8, sizes, seed=1, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for i, batch in enumerate(whole):
        assert sorted(flat(share[i] for share in shares)) == sorted(batch)
        counts = [len(share[i]) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_two_workers_load_the_same_augmented_images_as_none(images):
    batches = StreamBatches(len(images), [8] * 4, seed=7)
    alone, helped = (list(stream_loader(images, batches, workers)) for workers in (0, 2))
    assert len(alone) == len(helped) == 4
    for (pixels, targets), (same_pixels, same_targets) in zip(alone, helped, strict=True):
        assert torch.equal(pixels, same_pixels) and torch.equal(targets, same_targets)
    assert not torch.equal(alone[0][0], alone[3][0])


def test_a_resumed_loader_gives_the_same_pixels_as_the_tail(images):
    sizes = [5, 5, 5]
    whole = list(stream_loader(images, StreamBatches(24, sizes, seed=7), 0))
    resumed = list(stream_loader(images, StreamBatches(24, sizes, seed=7, first=2), 0))
    assert torch.equal(resumed[0][0], whole[2][0])


def test_the_augmentation_of_a_sample_depends_on_its_seed_alone(images, records):
    first, label = images[(3, 11)]
    torch.rand(5)
    again, _ = images[(3, 11)]
    other, _ = images[(3, 12)]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert label == records[3].label


def test_loading_leaves_the_global_random_state_as_it_was(images):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    images[(0, 99)]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_in_order_come_whole_and_alike_in_every_pass(records, num_workers):
    cache = PixelCache(28, squash(28))
    images = SeededImages(records, to_pixels, cache)
    loader = InOrder(images, num_workers)
    assert not images.all_decoded()
    first, later = list(loader), list(loader)
    assert images.all_decoded() and len(first) == len(later) == 1
    assert torch.equal(first[0][0], later[0][0]) and first[0][0].shape == (24, 28, 28, 3)
    assert first[0][1].tolist() == [record.label for record in records]


def test_batches_on_the_device_hold_network_inputs_and_untouched_labels():
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    floats, labels = torch.rand(2, 3, 5, 4), torch.tensor([7, 255], dtype=torch.uint8)
    ((views, found),) = OnDevice([[(pixels, floats), labels]], torch.device("cpu"))
    assert torch.equal(found, labels) and torch.equal(views[1], floats)
    assert torch.equal(views[0], network_input(pixels)) and views[0].dtype == torch.float32
    ((inputs, found),) = OnDevice([[pixels, labels]], torch.device("cpu"))
    assert torch.equal(inputs, views[0]) and torch.equal(found, labels)
