"""Labelled image sets on disk: the digits, folders, subsets, and images that are hard to read."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.data.layouts import embedded
from expansion.data.splits import hold_out
from expansion.images.content import readable_records
from expansion.images.records import ImageRecord


def record_of(path: Path) -> ImageRecord:
    return ImageRecord(path, path.name, 0, "class")


def toy_records(classes: dict[str, int]) -> list[ImageRecord]:
    return [
        ImageRecord(Path(f"{name}/{i}.png"), f"train/{name}/{i}.png", label, name)
        for label, (name, count) in enumerate(classes.items())
        for i in range(count)
    ]


@pytest.mark.slow
def test_the_digits_are_three_splits_of_32_pixel_images_that_share_none(digits_dir):
    dataset = load_dataset("digits", digits_dir)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.prompt_names[:3] == ("zero", "one", "two")
    contents: list[str] = []
    for split, count in (("train", 200), ("test", 597), ("prior", 1000)):
        records = dataset.records(split)
        assert len(records) == count
        assert [r.file_name for r in records] == sorted(r.file_name for r in records)
        assert all(r.file_name.startswith(f"{split}/{r.label}/") for r in records)
        images = [np.asarray(r.load()) for r in records]
        assert {image.shape for image in images} == {(32, 32, 3)}
        contents += [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert len(set(contents)) == 1797
    assert set(Counter(r.label for r in dataset.records("train")).values()) == {20}


def test_the_digits_are_unpacked_once(digits_dir, monkeypatch):
    before = {
        r.path: r.path.stat().st_mtime_ns
        for r in load_dataset("digits", digits_dir).records("train")
    }
    monkeypatch.setattr(embedded.np, "load", None)  # the scans must not be opened again
    again = load_dataset("digits", digits_dir).records("train")
    assert {r.path: r.path.stat().st_mtime_ns for r in again} == before


@pytest.mark.slow
def test_unpacking_the_digits_twice_at_once_leaves_one_whole_copy(tmp_path, monkeypatch):
    assets = tmp_path / "assets" / "digits"
    assets.mkdir(parents=True)
    with np.load(embedded.PROJECT_ROOT / "assets/digits/digits.npz") as scans:
        np.savez(assets / "digits.npz", **{key: scans[key][::3] for key in scans})
    monkeypatch.setattr(embedded, "PROJECT_ROOT", tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: load_dataset("digits", tmp_path / "data"), range(2)))
    assert os.listdir(tmp_path / "data") == ["digits"]
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "data")) == 599


def test_a_folder_of_class_folders_is_a_dataset(make_folder):
    root = make_folder(
        "pets",
        {
            "train": {"siamese_cat": ["b.jpg", "a.PNG"], "Dog": ["1.webp"]},
            "test": {"Dog": ["2.tiff"]},
        },
    )
    for dataset in (load_dataset(str(root)), load_dataset("pets", root.parent)):
        assert (dataset.name, dataset.root) == ("pets", root)
        assert dataset.class_names == ("Dog", "siamese_cat")
        assert dataset.prompt_names == ("Dog", "siamese cat")
        found = [(r.file_name, r.label, r.class_name) for r in dataset.records("train")]
        assert found == [
            ("train/Dog/1.webp", 0, "Dog"),
            ("train/siamese_cat/a.PNG", 1, "siamese_cat"),
            ("train/siamese_cat/b.jpg", 1, "siamese_cat"),
        ]
        assert [r.file_name for r in dataset.records("test")] == ["test/Dog/2.tiff"]


@pytest.mark.parametrize("name", ["val", "valid"])
def test_the_papers_names_of_the_test_folder_are_found(make_folder, name):
    root = make_folder("set", {"train": {"a": ["1.png"]}, name: {"a": ["1.png", "2.png"]}})
    assert len(load_dataset(str(root)).records("test")) == 2


def test_only_visible_image_files_count_and_sub_folders_belong_to_their_class(make_folder):
    root = make_folder("set", {"train": {"a": ["1.png"], "a/sub": ["2.png"], ".cache": ["3.png"]}})
    folder = root / "train" / "a"
    for junk in (".hidden.png", "notes.txt", ".DS_Store", "Thumbs.db", "mask.npy"):
        (folder / junk).write_bytes(b"junk")
    (folder / "album.jpg").mkdir()
    (folder / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (8, 8)).save(folder / ".ipynb_checkpoints" / "1-checkpoint.png")
    (root / "train" / "labels.csv").write_text("a,b")
    found = [r.file_name for r in load_dataset(str(root)).records("train")]
    assert found == ["train/a/1.png", "train/a/sub/2.png"]


def test_a_class_folder_may_be_a_link(make_folder):
    root = make_folder("set", {"train": {"a": ["1.png"]}, "elsewhere": {"b": ["2.png"]}})
    (root / "train" / "b").symlink_to(root / "elsewhere" / "b")
    found = [r.file_name for r in load_dataset(str(root)).records("train")]
    assert found == ["train/a/1.png", "train/b/2.png"]


@pytest.mark.parametrize(
    ("tree", "split", "named"),
    [
        ({"test": {"a": ["1.png"]}}, "train", "no folder train/"),
        ({"train": {"a": ["1.png"]}}, "test", "no folder test/"),
        ({"train": {"a": ["1.png"], "empty": []}}, "train", "train/empty holds no images"),
        (
            {"train": {"a": ["1.png"]}, "test": {"a": ["1.png"], "bird": ["2.png"]}},
            "test",
            "'bird'",
        ),
        ({"train": {".cache": ["1.png"]}}, "train", "no class folders"),
    ],
)
def test_a_dataset_with_a_hole_is_refused_by_the_name_of_the_hole(make_folder, tree, split, named):
    with pytest.raises(InputError, match=named):
        load_dataset(str(make_folder("set", tree))).records(split)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("digit", "did you mean 'digits'"),
        ("zebra", "known: "),
        ("/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_an_unknown_dataset_is_refused_by_name(tmp_path, name, named):
    with pytest.raises(InputError, match=named):
        load_dataset(name, tmp_path)


def test_fewer_shots_are_a_subset_of_more_and_ignore_the_other_images():
    records = toy_records({"a": 12, "b": 9, "c": 30})
    chosen = {shots: few_shot(records, shots, subset_seed=3) for shots in (1, 2, 5, 9)}
    for fewer, more in ((1, 2), (2, 5), (5, 9)):
        assert set(chosen[fewer]) < set(chosen[more])
        assert Counter(r.label for r in chosen[more]) == {0: more, 1: more, 2: more}
    # Images that were not chosen may go, and another class may come, in any order.
    changed = [*toy_records({"a": 1, "b": 1, "c": 1, "d": 5})[3:], *chosen[9]][::-1]
    assert [r for r in few_shot(changed, 5, subset_seed=3) if r.class_name != "d"] == chosen[5]
    assert few_shot(records, 5, subset_seed=4) != chosen[5]
    assert few_shot(records, None) == records


@pytest.mark.parametrize(
    ("shots", "named"), [(0, "--shots 0"), (-1, "--shots -1"), (4, "'b' has only 3")]
)
def test_an_impossible_number_of_shots_is_refused(shots, named):
    with pytest.raises(InputError, match=named):
        few_shot(toy_records({"a": 9, "b": 3}), shots)


@pytest.mark.parametrize(
    ("fraction", "held"), [(0.0, (0, 0)), (0.01, (1, 1)), (0.25, (5, 2)), (0.5, (10, 3))]
)
def test_held_out_images_are_the_same_share_of_every_class(fraction, held):
    records = toy_records({"a": 20, "b": 6})
    training, validation = hold_out(records, fraction, seed=1)
    counts = Counter(r.label for r in validation)
    assert (counts[0], counts[1]) == held
    assert sorted([*training, *validation], key=records.index) == records
    assert hold_out(records, fraction, seed=1) == (training, validation)
    if fraction == 0.25:
        assert hold_out(records, fraction, seed=2)[1] != validation


def test_a_class_is_never_held_out_whole():
    with pytest.raises(InputError, match="'b' has only 1"):
        hold_out(toy_records({"a": 20, "b": 1}), 0.1, seed=1)


def test_a_photograph_is_turned_upright(tmp_path):
    sideways = Image.new("RGB", (20, 10), "blue")
    sideways.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[274] = 6  # orientation: the left side is the top
    sideways.save(tmp_path / "photo.png", exif=exif)
    image = record_of(tmp_path / "photo.png").load()
    assert image.size == (10, 20)
    assert (image.getpixel((5, 2)), image.getpixel((5, 17))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb_of_the_same_colour(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16))
    else:
        image = Image.new("RGB", (8, 8), "white" if mode == "1" else (128, 128, 128))
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    loaded = record_of(path).load()
    assert loaded.mode == "RGB"
    expected = 255 if mode == "1" else 128
    assert np.abs(np.asarray(loaded, dtype=int) - expected).max() <= 4


def spoil(path: Path, how: str) -> None:
    Image.effect_noise((64, 64), 60).save(path)
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "text": b"404 Not Found"}[how]
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_an_unreadable_image_is_named_or_skipped_and_counted(tmp_path, caplog, how, suffix):
    broken, good = tmp_path / f"broken{suffix}", tmp_path / "good.png"
    spoil(broken, how)
    Image.new("RGB", (8, 8)).save(good)
    records = [record_of(broken), record_of(good)]
    with pytest.raises(InputError, match=f"broken{suffix}.*--on_error skip"):
        readable_records(records, "fail")
    with caplog.at_level(logging.WARNING):
        kept, messages = readable_records(records, "skip")
    assert [record.path for record in kept] == [good] and len(messages) == 1
    assert str(broken) in messages[0] and str(broken) in caplog.text


def test_malformed_camera_data_is_no_crash(tmp_path):
    # Orientation 6, and an XResolution that is text: Pillow fails to write it back after the turn.
    tags = struct.pack("<HHHII", 2, 274, 3, 1, 6) + struct.pack("<HHI4sI", 282, 2, 4, b"72\0\0", 0)
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (20, 10), "red").save(path, exif=b"Exif\0\0II*\0\x08\0\0\0" + tags)
    kept, messages = readable_records([record_of(path)], "skip")
    assert len(kept) + len(messages) == 1
