"""Decoded images: the same pixels from memory, disk and file; bounded; shared by processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import image_cache, squash
from expansion.data.batches import SeededImages
from expansion.images import pixel_cache
from expansion.images.pixel_cache import Block, PixelCache, free_memory
from expansion.images.records import ImageRecord
from expansion.images.tensors import to_pixels

SIDE = 12


@pytest.fixture
def records(tmp_path) -> list[ImageRecord]:
    """Eight pictures of noise, 20 x 15 pixels."""
    rng = np.random.default_rng(0)
    found = []
    for label in range(8):
        path = tmp_path / f"{label}.png"
        Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).save(path)
        found.append(ImageRecord(path, path.name, label, "noise"))
    return found


def expected(record: ImageRecord) -> np.ndarray:
    return np.asarray(record.load().resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def make_cache(*kinds: str, images: int | None = None) -> PixelCache:
    most = None if images is None else images * Block.image_bytes(SIDE)
    return PixelCache(SIDE, squash(SIDE), kinds, most)


@pytest.mark.parametrize("kinds", [("memory",), ("disk",), ("memory", "disk"), ()])
def test_pixels_are_the_same_from_every_kind_of_cache_and_on_every_read(records, kinds):
    cache = make_cache(*kinds)
    places = cache.reserve(records)
    assert all((place is not None) == bool(kinds) for place in places)
    for _ in range(2):
        for record, place in zip(records, places):
            image = cache.load(record, place)
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected(record))


def test_a_file_is_read_once(records, monkeypatch):
    cache = make_cache("memory")
    places = cache.reserve(records)
    assert not places[3].filled
    first = np.asarray(cache.load(records[3], places[3]))
    monkeypatch.setattr(ImageRecord, "load", None)
    assert places[3].filled
    assert np.array_equal(np.asarray(cache.load(records[3], places[3])), first)


def test_what_does_not_fit_is_decoded_anew_and_nothing_is_given_up(records, caplog):
    caplog.set_level("INFO")
    cache = make_cache("memory", images=5)
    places = cache.reserve(records)
    assert [place is not None for place in places] == [True] * 5 + [False] * 3
    assert "3 of 8 images do not fit into the image cache" in caplog.text
    for record, place in zip(records, places):
        assert np.array_equal(np.asarray(cache.load(record, place)), expected(record))
    assert all(place.filled for place in places[:5]) and cache.reserve(records)[:5] == places[:5]


def test_what_memory_has_no_room_for_goes_to_the_disk(records, monkeypatch):
    monkeypatch.setattr(pixel_cache, "free_memory", lambda: 6 * Block.image_bytes(SIDE))
    places = make_cache("memory", "disk").reserve(records)
    blocks = [place.block for place in places]
    assert [block.count for block in dict.fromkeys(blocks)] == [3, 5]  # half of the memory
    places = make_cache("memory").reserve(records)
    assert sum(place is not None for place in places) == 3


def test_processes_of_one_training_share_the_room(records, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    places = make_cache("memory", images=8).reserve(records)
    assert sum(place is not None for place in places) == 4


def test_an_image_has_one_place_until_its_file_changes(records):
    cache = make_cache("memory")
    before = cache.reserve(records)
    cache.load(records[0], before[0])
    relabelled = [dataclasses.replace(record, label=9) for record in records]
    assert cache.reserve(relabelled) == before
    Image.new("RGB", (30, 30), "red").save(records[0].path)
    cropped = dataclasses.replace(records[1], crop_bottom=4)
    after = cache.reserve([records[0], cropped, *records[2:]])
    assert after[0] != before[0] and after[1] != before[1] and after[2:] == before[2:]
    assert np.array_equal(np.asarray(cache.load(records[0], after[0])), expected(records[0]))
    assert np.array_equal(np.asarray(cache.load(cropped, after[1])), expected(cropped))


def test_images_of_one_tar_have_places_of_their_own(records, tmp_path):
    contents = [record.path.read_bytes() for record in records[:2]]
    tar = tmp_path / "images.tar"
    tar.write_bytes(b"".join(contents))
    ranges = [(0, len(contents[0])), (len(contents[0]), len(contents[1]))]
    packed = [
        dataclasses.replace(record, path=tar, byte_range=part)
        for record, part in zip(records, ranges)
    ]
    cache = make_cache("memory")
    places = cache.reserve(packed)
    assert places[0] != places[1]
    for record, inside, place in zip(records, packed, places):
        for _ in range(2):  # decoded, then kept
            assert np.array_equal(np.asarray(cache.load(inside, place)), expected(record))


def test_a_missing_file_has_no_place(records):
    records[2].path.unlink()
    places = make_cache("memory").reserve(records)
    assert places[2] is None and places[1] is not None


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_a_worker_decodes_is_there_for_everybody(records, method, kind):
    cache = make_cache(kind)
    images = SeededImages(records, to_pixels, cache)
    cache.load(records[0], images.places[0])
    loader = DataLoader(
        images,
        batch_sampler=[[(i, 0) for i in range(8)]],
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    ((pixels, _),) = loader
    assert images.all_decoded()
    assert torch.equal(pixels, torch.stack([torch.tensor(expected(record)) for record in records]))


def test_a_cache_leaves_no_file_and_no_open_handle(records, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    files, handles = sorted(os.listdir(tmp_path)), len(os.listdir("/proc/self/fd"))
    cache = make_cache("disk")
    places = cache.reserve(records)
    assert cache.load(records[0], places[0]).size == (SIDE, SIDE)
    assert sorted(os.listdir(tmp_path)) == files and len(os.listdir("/proc/self/fd")) > handles
    del cache, places
    assert len(os.listdir("/proc/self/fd")) == handles


def test_a_refusal_of_the_system_costs_speed_alone(records, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = make_cache("disk")
    places = cache.reserve(records)
    assert places == [None] * 8 and "No space left on device" in caplog.text
    assert np.array_equal(np.asarray(cache.load(records[0], None)), expected(records[0]))


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 2000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10**6
    (tmp_path / "memory.max").write_text("9000\n")
    assert free_memory() == 4000


def test_streams_of_one_recipe_share_a_cache_of_the_kind_asked_for():
    sizes = {"image_size": SIDE, "resize_size": SIDE}
    auto = image_cache(Recipe(**sizes))
    assert auto is image_cache(Recipe(**sizes, lr=0.2)) and auto.kinds == ("memory", "disk")
    assert image_cache(Recipe(**sizes, image_cache="none")).kinds == ()
    limited = image_cache(Recipe(**sizes, image_cache="disk", image_cache_gb=0.5))
    assert (limited.kinds, limited.max_bytes) == (("disk",), 500_000_000)
