"""What `check` and the commands say of conversions, blank images and doubtful ranges."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expansion.data import datasets as image_datasets
from expansion.data.__main__ import main
from expansion.data.datasets import load_dataset, unlabeled_records
from expansion.data.layouts import configs as dataset_configs
from expansion.images.content import readable_records
from expansion.images.pixel_cache import PixelCache
from expansion.images.pixels import Reading
from expansion.images.records import ImageRecord, PackedRecord
from tests.helpers.image_files import adobe_profile

PLACES = [f"{split}/{name}/{i}" for split in ("train", "test") for name in "ab" for i in range(3)]


def noise(seed: int, top: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).random((24, 24)) * top


def grey(seed: int) -> Image.Image:
    return Image.fromarray((noise(seed) * 255).astype(np.uint8))


def make(root: Path, images: dict[str, Image.Image], suffix: str = ".png", **options) -> Path:
    """A dataset of those images by place, and grey noise elsewhere."""
    for seed, place in enumerate(PLACES):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image = images.get(place)
        if image is None:
            grey(seed).save(f"{path}.png")
        else:
            image.save(f"{path}{suffix}", **options)
    return root


@pytest.fixture
def check(capsys):
    def run(*arguments: object) -> tuple[int, str]:
        code = main(["check", *map(str, arguments)])
        return code, capsys.readouterr().out

    return run


def test_conversions_are_counted_in_one_line(tmp_path, check):
    exif = Image.Exif()
    exif[274] = 6
    make(tmp_path, {"train/a/0": grey(90).resize((24, 48))}, exif=exif)
    make(tmp_path, {p: grey(i).convert("RGB") for i, p in enumerate(PLACES[1:3])},
         icc_profile=adobe_profile())  # fmt: skip
    clear = grey(91).convert("RGBA")
    clear.putalpha(grey(92))
    clear.save(tmp_path / "train/b/0.png")
    Image.fromarray((noise(93) * 65535).astype(np.uint16)).save(tmp_path / "train/b/1.png")
    grey(94).convert("CMYK").save(tmp_path / "train/b/2.tif")
    grey(95).save(tmp_path / "test/a/0.png", icc_profile=b"junk" * 40)
    frames = [grey(96), grey(97)]
    frames[0].save(tmp_path / "test/a/x.gif", save_all=True, append_images=frames[1:])
    grey(98).resize((24, 48)).save(tmp_path / "test/a/y.png", exif=exif)
    code, text = check(tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("converted: "))
    assert code == 0 and set(line.removeprefix("converted: ").split("; ")) == {
        "turned upright: 1",
        "colour profile converted: 2",
        "transparent, on white: 1",
        "16-bit: 1",
        "CMYK: 1",
        "broken colour profile ignored: 1",
        "several frames, first used: 1",
    }
    assert "width 24 to 48, height 24 to 24" in text  # after turning


def test_a_set_of_plain_images_prints_no_line_about_conversions(tmp_path, check):
    code, text = check(make(tmp_path, {}))
    assert code == 0 and "converted" not in text and "note" not in text


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 32767])
def test_a_set_of_16_bit_images_that_come_out_dark_is_a_problem(tmp_path, check, top):
    values = {p: Image.fromarray(noise(i, top + 1).astype(np.uint16)) for i, p in enumerate(PLACES)}
    code, text = check(make(tmp_path, values))
    assert code == 1
    assert f"12 16-bit images come out dark or black: none has a value above {top} of" in text
    assert f"value_range: [0, {top}] in the dataset's file in configs/datasets/" in text


def test_one_dark_image_among_others_of_16_bits_is_none(tmp_path, check):
    images = {
        p: Image.fromarray((noise(i) * 65535).astype(np.uint16)) for i, p in enumerate(PLACES)
    }
    images[PLACES[0]] = Image.fromarray(noise(50, 20000).astype(np.uint16))
    assert check(make(tmp_path, images))[0] == 0


def test_numbers_that_were_taken_differently_are_a_problem(tmp_path, check):
    images = {PLACES[0]: Image.fromarray(noise(70).astype(np.float32))}
    images[PLACES[1]] = Image.fromarray(noise(71, 255).astype(np.float32))
    code, text = check(make(tmp_path, images, ".tif"))
    assert code == 1 and "were taken differently: 1 images 0..1 taken; 1 images 0..255" in text
    assert "value_range: [BLACK, WHITE]" in text


def test_images_that_were_each_stretched_are_noted(tmp_path, check):
    scans = [Image.fromarray((noise(i, 4000) - 1000).astype(np.int32)) for i in range(2)]
    code, text = check(make(tmp_path, dict(zip(PLACES[:2], scans, strict=True)), ".tif"))
    assert code == 0 and "note: 2 images were each stretched from lowest to highest" in text


def test_images_of_nearly_one_colour_are_named_and_most_of_a_class_is_a_problem(tmp_path, check):
    flat = Image.fromarray((noise(5) * 7 + 100).astype(np.uint8))
    code, text = check(make(tmp_path, {"train/a/1": flat}))
    assert code == 0 and "note: 1 image is nearly one colour: train/a/1.png" in text
    images = {p: Image.fromarray((noise(i) * 7).astype(np.uint8)) for i, p in enumerate(PLACES)}
    part = {p: image for p, image in images.items() if "/a/" in p}
    code, text = check(make(tmp_path, part))
    assert code == 1 and "6 images are nearly one colour: train/a/0.png" in text
    assert "most of class a: blank files, or values of another range" in text
    assert "most of all: blank" in check(make(tmp_path, images))[1]


def test_a_command_that_goes_on_warns_of_a_dark_set(tmp_path, caplog):
    values = {p: Image.fromarray(noise(i, 4096).astype(np.uint16)) for i, p in enumerate(PLACES)}
    records = load_dataset(str(make(tmp_path, values))).records("train")
    with caplog.at_level(logging.WARNING):
        kept, problems = readable_records(records, "fail")
    assert len(kept) == 6 and not problems
    assert "6 16-bit images come out dark" in caplog.text


@pytest.fixture
def described(tmp_path, monkeypatch):
    """Function that makes a dataset named `mine` with those lines in its YAML file."""

    def describe(root: Path, *lines: str) -> image_datasets.ImageDataset:
        folder = tmp_path / "configs" / "datasets"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("\n".join([f"folder: {root}", *lines]) + "\n")
        monkeypatch.setattr(dataset_configs, "CONFIG_DIR", tmp_path / "configs")
        return load_dataset("mine")

    return describe


def test_the_dataset_file_says_background_and_range_for_all_its_images(tmp_path, described, check):
    root = tmp_path / "set"
    values = {p: Image.fromarray(noise(i, 4096).astype(np.uint16)) for i, p in enumerate(PLACES)}
    make(root, values)
    Image.new("LA", (24, 24), (200, 0)).save(root / "train/a/clear.png")
    dataset = described(root, "value_range: [0, 4095]", "background: '#204060'")
    code, text = check("mine")
    assert code == 0 and "taken by value_range: 12" in text
    assert "transparent, on #204060: 1" in text and "nearly one colour: train/a/clear.png" in text
    images = {r.file_name: np.asarray(r.load()) for r in dataset.records("train")}
    assert images["train/a/0.png"].max() > 250
    assert (images["train/a/clear.png"] == (0x20, 0x40, 0x60)).all()
    found = unlabeled_records(root / "train", dataset.reading)
    assert {r.reading for r in found} == {Reading("#204060", (0, 4095))}


def test_the_pixel_cache_keeps_readings_apart(tmp_path):
    Image.new("LA", (8, 8), (200, 0)).save(tmp_path / "a.png")
    records = [
        ImageRecord(tmp_path / "a.png", "a.png", 0, "a", reading=Reading(background=colour))
        for colour in ("white", "red")
    ]
    cache = PixelCache(8, lambda image: image)
    places = cache.reserve(records)
    found = [
        cache.load(r, place).getpixel((0, 0)) for r, place in zip(records, places, strict=True)
    ]
    assert found == [(255, 255, 255), (255, 0, 0)]


def test_an_image_in_a_tar_is_read_by_the_same_rule(tmp_path):
    buffer = io.BytesIO()
    Image.new("LA", (8, 8), (0, 0)).save(buffer, "PNG")
    content = buffer.getvalue()
    (tmp_path / "a.tar").write_bytes(b"before" + content + b"after")
    record = PackedRecord(tmp_path / "a.tar", "a.png", 0, "a", byte_range=(6, len(content)))
    assert record.load().getpixel((0, 0)) == (255, 255, 255)
    assert record.decoded().notes == ("transparent, on white",)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2", ".j2k", ".dib", ".apng"])
@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_an_image_of_any_usual_suffix_counts(tmp_path, check, suffix, change):
    make(tmp_path, {})
    kinds = {".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".dib": "DIB", ".apng": "PNG"}
    grey(80).convert("RGB").save(
        tmp_path / f"train/a/more{change(suffix)}", kinds.get(suffix, "JPEG")
    )
    code, text = check(tmp_path)
    assert code == 0 and "all    7      6" in text
