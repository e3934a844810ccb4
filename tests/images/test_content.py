"""What images contain is what sets and runs belong to; it is read once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from expansion.common.errors import InputError
from expansion.images import content
from expansion.images.content import content_summary, readable_records
from expansion.images.records import ImageRecord


@pytest.fixture
def record(tmp_path, monkeypatch) -> ImageRecord:
    """An image that has been at rest for long, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "AT_REST_NS", 0)
    path = tmp_path / "set" / "train" / "a.bmp"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return ImageRecord(path, "train/a.bmp", 0, "a")


def looked_at(record: ImageRecord) -> ImageRecord:
    return readable_records([record], "fail")[0][0]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the images that were decoded."""
    names, decoded = [], ImageRecord.decoded

    def noticed(self):
        names.append(self.file_name)
        return decoded(self)

    monkeypatch.setattr(ImageRecord, "decoded", noticed)
    return names


def test_content_is_the_sha256_of_the_file(record):
    assert looked_at(record).content == hashlib.sha256(record.path.read_bytes()).hexdigest()


def test_an_image_is_decoded_by_the_first_command_only(record, decoded):
    assert looked_at(record) == looked_at(record)
    assert len(decoded) == 1


@pytest.mark.parametrize("same_time", [False, True])
def test_an_image_replaced_in_place_is_read_anew_even_at_the_same_size_and_time(record, same_time):
    before, stat = looked_at(record).content, record.path.stat()
    time.sleep(0.02)  # file systems count time in ticks
    Image.new("RGB", (4, 4), "blue").save(record.path)
    assert record.path.stat().st_size == stat.st_size
    if same_time:  # as cp -p and rsync restore it
        os.utime(record.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert looked_at(record).content != before


def test_an_image_that_changed_a_moment_ago_is_not_kept(record, decoded, monkeypatch):
    monkeypatch.setattr(content, "AT_REST_NS", 3600 * 10**9)
    looked_at(record)
    looked_at(record)
    assert len(decoded) == 2


def test_a_broken_image_is_reported_by_every_command(record):
    record.path.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(InputError, match="a.bmp"):
            looked_at(record)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"read_by": "x"}', b'{"entries": 3}', b"\xff"])
def test_a_damaged_cache_costs_time_and_no_more(record, damage):
    before = looked_at(record)
    (cache,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json")
    cache.write_bytes(damage)
    assert looked_at(record) == before


def test_a_cache_that_cannot_be_written_costs_time_and_no_more(record, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert looked_at(record).content


def test_the_second_look_at_many_images_is_quick(tmp_path, monkeypatch, decoded):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "AT_REST_NS", 0)
    records = [ImageRecord(tmp_path / f"{i}.png", f"{i}.png", 0, "a") for i in range(50)]
    for record in records:
        Image.new("L", (2, 2)).save(record.path)
    time.sleep(0.01)
    assert readable_records(records, "fail") == readable_records(records, "fail")
    assert len(decoded) == 50


@pytest.mark.parametrize(
    "change", [{"label": 1}, {"class_name": "b"}, {"file_name": "b.png"}, {"content": "0"}]
)
def test_name_label_and_content_are_all_part_of_the_identity(record, change):
    record = looked_at(record)
    changed = dataclasses.replace(record, **change)
    assert content_summary([record]) != content_summary([changed])
    assert content_summary([record]).startswith("1 images, content ")
