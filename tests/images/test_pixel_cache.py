"""Decoded images: the same pixels from memory and file; bounded; shared by processes."""

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
from expansion.images.pixel_cache import PixelCache, free_memory, image_bytes
from expansion.images.records import ImageRecord, PackedRecord
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


@pytest.fixture
def room_for_five(monkeypatch):
    """Half of the memory that seems free holds five images."""
    monkeypatch.setattr(pixel_cache, "free_memory", lambda: 11 * image_bytes(SIDE))


@pytest.fixture
def cache() -> PixelCache:
    return PixelCache(SIDE, squash(SIDE))


def expected(record: ImageRecord) -> np.ndarray:
    return np.asarray(record.load().resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def test_pixels_are_the_same_on_every_read(records, cache):
    places = cache.reserve(records)
    for _ in range(2):
        for record, place in zip(records, places, strict=True):
            image = cache.load(record, place)
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected(record))


def test_a_file_is_read_once(records, cache, monkeypatch):
    places = cache.reserve(records)
    assert not cache.holds(places[3])
    first = np.asarray(cache.load(records[3], places[3]))
    monkeypatch.setattr(ImageRecord, "load", None)
    assert cache.holds(places[3])
    assert np.array_equal(np.asarray(cache.load(records[3], places[3])), first)


def test_what_does_not_fit_is_decoded_anew_and_nothing_is_given_up(
    records, cache, room_for_five, caplog
):
    caplog.set_level("INFO")
    places = cache.reserve(records)
    assert places == [0, 1, 2, 3, 4, None, None, None]
    assert "3 of 8 images do not fit into memory" in caplog.text
    for record, place in zip(records, places, strict=True):
        assert np.array_equal(np.asarray(cache.load(record, place)), expected(record))
    assert all(map(cache.holds, places[:5])) and cache.reserve(records) == places


def test_a_second_set_of_images_gets_what_room_is_left(records, cache, room_for_five):
    assert cache.reserve(records[:4]) == [0, 1, 2, 3]
    assert cache.reserve(records[3:]) == [3, 4, None, None, None]


def test_processes_of_one_training_share_the_room(records, cache, room_for_five, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert sum(place is not None for place in cache.reserve(records)) == 2


def test_an_image_has_one_place_until_its_file_changes(records, cache):
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


def test_images_of_one_tar_have_places_of_their_own(records, cache, tmp_path):
    contents = [record.path.read_bytes() for record in records[:2]]
    tar = tmp_path / "images.tar"
    tar.write_bytes(b"".join(contents))
    ranges = [(0, len(contents[0])), (len(contents[0]), len(contents[1]))]
    packed = [
        PackedRecord(tar, record.file_name, 0, "", byte_range=part)
        for record, part in zip(records, ranges, strict=False)
    ]
    places = cache.reserve(packed)
    assert places[0] != places[1]
    for record, inside, place in zip(records, packed, places, strict=False):
        for _ in range(2):  # decoded, then kept
            assert np.array_equal(np.asarray(cache.load(inside, place)), expected(record))


def test_a_missing_file_has_no_place(records, cache):
    records[2].path.unlink()
    places = cache.reserve(records)
    assert places[2] is None and places[1] is not None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_a_worker_decodes_is_there_for_everybody(records, cache, method):
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


@pytest.mark.parametrize("has_memfd", [True, False])
def test_a_cache_leaves_no_file_and_no_open_handle(records, tmp_path, monkeypatch, has_memfd):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not has_memfd:  # as on macOS
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr(pixel_cache, "free_memory", lambda: 10**6)
    files, handles = sorted(os.listdir(tmp_path)), len(os.listdir("/proc/self/fd"))
    cache = PixelCache(SIDE, squash(SIDE))
    places = cache.reserve(records)
    for _ in range(2):
        assert np.array_equal(np.asarray(cache.load(records[0], places[0])), expected(records[0]))
    assert sorted(os.listdir(tmp_path)) == files and len(os.listdir("/proc/self/fd")) > handles
    del cache, places
    assert len(os.listdir("/proc/self/fd")) == handles


def test_a_refusal_of_the_system_costs_speed_alone(records, cache, monkeypatch, caplog):
    def refused(*arguments):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "truncate", refused)
    places = cache.reserve(records)
    assert places == [None] * 8 and "Cannot allocate memory" in caplog.text
    assert np.array_equal(np.asarray(cache.load(records[0], None)), expected(records[0]))


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 2000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10**6
    (tmp_path / "memory.max").write_text("9000\n")
    assert free_memory() == 4000


def test_streams_of_one_side_share_a_cache_unless_none_is_wanted():
    sizes = {"image_size": SIDE, "resize_size": SIDE}
    shared = image_cache(Recipe(**sizes))
    assert shared is image_cache(Recipe(**sizes, lr=0.2)) and shared.side == SIDE
    assert image_cache(Recipe(**sizes, image_cache="none")) is None
