"""Readers of folders, lists and MATLAB files: labels, class order and official splits."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.readers.lists import ListLayout, read_lists
from tests.conftest import ROOT
from tests.helpers.stand_ins import (
    HURTFUL,
    WRITERS,
    aircraft,
    cars,
    draw,
    folders,
    stand_in,
    write_lines,
)

DATASETS_DIR = os.environ.get("DATASETS_DIR")
real_data = pytest.mark.skipif(
    DATASETS_DIR is None, reason="needs cuts of the real datasets: set DATASETS_DIR to their folder"
)


def counts(dataset) -> dict[str, dict[str, int]]:
    return {
        split: dict(Counter(r.class_name for r in dataset.records(split)))
        for split in ("train", "test")
    }


def test_every_stand_in_is_of_a_dataset_file():
    assert {path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")} >= {*WRITERS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "prompts", "train", "test"),
    [
        ("caltech-101", ["Leopards", "yin_yang"], ["Leopards", "yin yang"], [30, 30], [1, 3]),
        (
            "caltech-101-faces",
            ["Faces_easy", "Leopards", "yin_yang"],
            ["Faces easy", "Leopards", "yin yang"],
            [30, 30, 30],
            [2, 1, 3],
        ),
        (
            "stanford_cars",
            ["2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"],
            ["2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"],
            [2, 2],
            [1, 1],
        ),
        (
            "oxford_pets",
            ["Abyssinian", "american_bulldog", "Bengal"],
            ["abyssinian", "american bulldog", "bengal"],
            [2, 2, 2],
            [3, 3, 3],
        ),
        (
            "oxford_flowers",
            ["1", "2", "10"],
            ["pink primrose", "hard-leaved pocket orchid", "globe thistle"],
            [2, 2, 2],
            [2, 2, 2],
        ),
        (
            "oxford_flowers_official",
            ["1", "2", "10", "77"],
            ["pink primrose", "hard-leaved pocket orchid", "globe thistle", "passion flower"],
            [1, 1, 1, 1],
            [1, 0, 1, 1],
        ),
        ("dtd", ["banded", "polka-dotted"], ["banded", "polka-dotted"], [4, 4], [2, 2]),
        (
            "fgvc_aircraft",
            ["707-320", "F-16A/B", "F/A-18"],
            ["707-320", "F-16A/B", "F/A-18"],
            [2, 2, 2],
            [2, 2, 2],
        ),
        (
            "cub-200-2011",
            ["Black_footed_Albatross", "Laysan_Albatross"],
            ["Black footed Albatross", "Laysan Albatross"],
            [2, 2],
            [1, 1],
        ),
        ("shenzhen", ["0", "1"], ["normal", "tuberculosis"], [3, 3], [2, 2]),
        (
            "imagenet",
            ["n02012849", "n02113186", "n02963159", "n03126707"],
            ["crane bird", "Cardigan Welsh corgi", "cardigan", "construction crane"],
            [2, 2, 2, 2],
            [2, 2, 2, 2],
        ),
        ("imagenette", ["n01440764", "n03028079"], ["tench", "church"], [2, 1], [2, 1]),
    ],
)
def test_a_dataset_is_read_in_its_official_layout(tmp_path, name, classes, prompts, train, test):
    root = stand_in(name, tmp_path)
    dataset = load_dataset(name, tmp_path)
    assert (dataset.name, dataset.root) == (name, root)
    assert list(dataset.class_names) == classes
    assert list(dataset.prompt_names) == prompts
    for split, expected in (("train", train), ("test", test)):
        records = dataset.records(split)
        assert [sum(r.label == i for r in records) for i in range(len(classes))] == expected
        assert all(classes[r.label] == r.class_name for r in records)
        assert all(r.path == root / r.file_name and r.path.is_file() for r in records)
        assert len({r.file_name for r in records}) == len(records)
    names = [{r.file_name for r in dataset.records(split)} for split in ("train", "test")]
    assert not names[0] & names[1]


@pytest.mark.slow
def test_each_image_bears_the_label_that_its_own_line_gives(tmp_path):
    stand_in("oxford_flowers_official", tmp_path)
    found = {
        r.file_name: r.class_name
        for r in load_dataset("oxford_flowers_official", tmp_path).records("test")
    }
    assert found == {
        "jpg/image_00005.jpg": "10",
        "jpg/image_00006.jpg": "1",
        "jpg/image_00008.jpg": "77",
    }
    stand_in("cub-200-2011", tmp_path)
    records = load_dataset("cub-200-2011", tmp_path).records("train")
    assert all(r.class_name in r.file_name for r in records) and len(records) == 4


@pytest.mark.slow
def test_the_cars_may_lie_in_nested_folders(tmp_path):
    cars(tmp_path / "stanford_cars", nested=True)
    dataset = load_dataset("stanford_cars", tmp_path)
    assert dataset.records("train")[0].file_name == "cars_train/cars_train/00001.jpg"
    assert len(dataset.records("test")) == 2


@pytest.mark.slow
def test_cars_without_labelled_test_images_train_but_name_the_missing_file(tmp_path):
    cars(tmp_path / "stanford_cars", labelled_test=False)
    dataset = load_dataset("stanford_cars", tmp_path)
    assert len(dataset.records("train")) == 4
    with pytest.raises(InputError, match="test images: cars_test_annos_withlabels.mat"):
        dataset.records("test")
    assert len(load_dataset("stanford_cars", tmp_path, 0.5).records("test")) == 2


@pytest.mark.slow
def test_annotations_without_labels_are_refused(tmp_path):
    cars(tmp_path / "stanford_cars")
    root = tmp_path / "stanford_cars"
    (root / "devkit/cars_test_annos.mat").replace(root / "cars_test_annos_withlabels.mat")
    with pytest.raises(InputError, match="no fields fname and class"):
        load_dataset("stanford_cars", tmp_path)


def test_a_class_number_beyond_the_names_is_told_with_its_file(tmp_path):
    root = tmp_path / "stanford_cars"
    cars(root)
    rows = np.empty(2, dtype=[("fname", object), ("class", object)])
    rows[:] = [("00001.jpg", 1), ("00002.jpg", 9)]
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": rows})
    with pytest.raises(InputError, match=r"train_annos\.mat: class 9 of 00002\.jpg, but there"):
        load_dataset("stanford_cars", tmp_path)


@pytest.mark.slow
def test_a_damaged_matlab_file_is_named(tmp_path):
    root = stand_in("oxford_flowers_official", tmp_path)
    (root / "setid.mat").write_bytes(b"404 Not Found" * 20)
    with pytest.raises(InputError, match=r"setid\.mat as a MATLAB file"):
        load_dataset("oxford_flowers_official", tmp_path)


def test_the_credit_line_below_an_aircraft_is_cut_off(tmp_path):
    stand_in("fgvc_aircraft", tmp_path)
    record = load_dataset("fgvc_aircraft", tmp_path).records("train")[0]
    whole = np.asarray(Image.open(record.path))
    assert np.array_equal(np.asarray(record.load()), whole[:12])


def test_lists_of_the_x_rays_win_over_the_seeded_split(tmp_path):
    root = stand_in("shenzhen", tmp_path)
    (root / "train.json").write_text(json.dumps(["CHNCXR_0001_1.png", "CHNCXR_0002_0.png"]))
    with pytest.raises(InputError, match=r"test images: test\.json"):
        load_dataset("shenzhen", tmp_path)
    (root / "test.json").write_text(json.dumps(["CHNCXR_0004_0", "CHNCXR_0003_1"]))
    assert counts(load_dataset("shenzhen", tmp_path)) == {
        "train": {"0": 1, "1": 1},
        "test": {"0": 1, "1": 1},
    }


def test_hurtful_class_names_come_out_of_lists_as_they_are(tmp_path):
    aircraft(tmp_path / "fgvc_aircraft", HURTFUL)
    dataset = load_dataset("fgvc_aircraft", tmp_path)
    assert dataset.class_names == HURTFUL
    assert counts(dataset)["train"] == dict.fromkeys(HURTFUL, 2)


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("set/train", "one level too deep: give .*/set$"),
        ("set/train/cat", "two levels too deep: give .*/set$"),
        (".", "one level too high: give .*/set$"),
        ("raw", "give --test_fraction 0.3 to split them"),
        ("raw/cat", "images lie in it directly.*give .*/raw$"),
        ("high", "one level too high: give .*/high/raw$"),
        ("twice", "one level deeper; move the content of .*/twice/train/train up"),
    ],
)
def test_a_folder_of_the_wrong_level_names_the_right_one(tmp_path, inside, named):
    for split in ("set/train", "set/test", "raw", "high/raw", "twice/train/train"):
        folders(tmp_path / split, {"cat": 1, "dog": 1})
    if inside == ".":
        for other in ("raw", "high", "twice"):
            (tmp_path / other).rename(tmp_path / f".{other}")
    with pytest.raises(InputError, match=named):
        load_dataset(str(tmp_path / inside))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_with_a_metadata_file_is_a_dataset(tmp_path, kind):
    rows = [
        (f"images/{i:02d}.png", f"class {i % 3}", "train" if i < 6 else "val") for i in range(9)
    ]
    for name, _, _ in rows:
        draw(tmp_path / name)
    if kind == "csv":
        write_lines(
            tmp_path / "metadata.csv",
            ["split,file_name,label", *(f"{s},{n},{c}" for n, c, s in rows)],
        )
    else:
        lines = [json.dumps({"file_name": n, "label": c, "split": s}) for n, c, s in rows]
        write_lines(tmp_path / "metadata.jsonl", lines)
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("class 0", "class 1", "class 2")
    assert counts(dataset) == {
        "train": {"class 0": 2, "class 1": 2, "class 2": 2},
        "test": {"class 0": 1, "class 1": 1, "class 2": 1},
    }


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "CSV"])
def test_a_list_says_the_same_in_every_form(tmp_path, suffix):
    rows = [{"file_name": f"{i}.png", "label": f" {i % 2}.0", "split": "Train"} for i in range(4)]
    for row in rows:
        draw(tmp_path / row["file_name"])
    if suffix.startswith("json"):
        texts = list(map(json.dumps, rows))
        lines = ["[", ",\n".join(texts), "]"] if suffix == "json" else texts
    else:
        sign = "\t" if suffix == "tsv" else ","
        lines = [sign.join(cells) for cells in [rows[0].keys(), *(r.values() for r in rows)]]
    write_lines(tmp_path / f"list.{suffix}", lines)
    reader = read_lists(ListLayout(images=f"list.{suffix}"), tmp_path, "set")
    assert {r.file_name: r.class_name for r in reader.records("train")} == {
        f"{i}.png": f"{i % 2}" for i in range(4)
    }


def test_a_test_class_that_looks_like_a_training_class_is_named_beside_it(tmp_path):
    for i in range(2):
        draw(tmp_path / f"{i}.png")
    write_lines(tmp_path / "metadata.csv", ["file_name,label,split", "0.png,cat,train"])
    with (tmp_path / "metadata.csv").open("a") as file:
        file.write("1.png,Cat,test\n")
    with pytest.raises(InputError, match="'Cat' of 1.png has no .*; it looks like 'cat'"):
        load_dataset(str(tmp_path)).records("test")


def test_a_metadata_file_without_a_split_column_is_split_by_seed(tmp_path):
    for i in range(30):
        draw(tmp_path / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "label": i % 3 + 9}) for i in range(30)]
    write_lines(tmp_path / "metadata.jsonl", lines)
    with pytest.raises(InputError, match="no column 'split'.*--test_fraction"):
        load_dataset(str(tmp_path))
    dataset = load_dataset(str(tmp_path), test_fraction=0.2)
    assert dataset.class_names == ("9", "10", "11")  # numbers in the order of numbers
    assert counts(dataset)["test"] == {"9": 2, "10": 2, "11": 2}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"file_name": "gone.png", "label": "a"}', "1 of 2 listed images are not there: gone.png"),
        ('{"file_name": "../0.png", "label": "a"}', "outside the folder"),
        ('{"file_name": "0.png", "label": "b"}', "listed as 'a' and as 'b'"),
        ('{"file_name": "0.png"}', "line 2: no 'label'; the columns are file_name"),
        ("file_name: 0.png", "line 2: no JSON"),
    ],
)
def test_a_wrong_line_of_a_metadata_file_is_named(tmp_path, line, named):
    draw(tmp_path / "set" / "0.png")
    write_lines(tmp_path / "set/metadata.jsonl", ['{"file_name": "0.png", "label": "a"}', line])
    with pytest.raises(InputError, match=named):
        load_dataset(str(tmp_path / "set"), test_fraction=0.5).records("train")


def test_a_list_that_names_missing_images_says_which(tmp_path):
    root = stand_in("oxford_pets", tmp_path)
    (root / "images" / "Bengal_20.jpg").unlink()
    with pytest.raises(
        InputError, match="1 of 6 listed images are not there: images/Bengal_20.jpg"
    ):
        load_dataset("oxford_pets", tmp_path).records("train")


def test_missing_lists_are_named_and_looked_for_one_level_off(tmp_path):
    root = stand_in("dtd", tmp_path)
    (root / "labels" / "val1.txt").unlink()
    with pytest.raises(InputError, match="labels of the train images: labels/val1.txt"):
        load_dataset("dtd", tmp_path)
    root.rename(tmp_path / "inner")
    (tmp_path / "inner" / "labels" / "val1.txt").touch()
    root.mkdir()
    (tmp_path / "inner").rename(root / "dtd")
    with pytest.raises(
        InputError, match="but .*dtd/dtd has: lay the dataset one level differently"
    ):
        load_dataset("dtd", tmp_path)


@real_data
def test_the_real_annotations_of_the_flowers_give_the_official_counts(tmp_path):
    source = Path(DATASETS_DIR) / "flowers102-annotations"
    root = tmp_path / "oxford_flowers_official"
    (root / "jpg").mkdir(parents=True)
    for name in ("setid.mat", "imagelabels.mat"):
        (root / name).write_bytes((source / name).read_bytes())
    draw(tmp_path / "any.jpg")
    for i in range(1, 8190):
        os.link(tmp_path / "any.jpg", root / "jpg" / f"image_{i:05d}.jpg")
    dataset = load_dataset("oxford_flowers_official", tmp_path)
    assert len(dataset.class_names) == 102 and dataset.prompt_names[101] == "blackberry lily"
    assert set(counts(dataset)["train"].values()) == {10}
    assert len(dataset.records("test")) == 6149


@real_data
@pytest.mark.parametrize(
    ("name", "folder", "num_classes", "train", "test"),
    [
        ("oxford_pets", "oxford-pets-mini", 3, 90, 90),
        ("caltech-101", "caltech-101-mini", 10, 300, 100),
    ],
)
def test_a_cut_of_a_real_dataset_is_read(tmp_path, name, folder, num_classes, train, test):
    (tmp_path / name).mkdir()
    for inner in (Path(DATASETS_DIR) / folder).iterdir():
        (tmp_path / name / inner.name).symlink_to(inner)  # what is written lands beside the links
    dataset = load_dataset(name, tmp_path)
    assert len(dataset.class_names) == num_classes
    assert [len(dataset.records(split)) for split in ("train", "test")] == [train, test]
    assert all(r.load().mode == "RGB" for r in dataset.records("train")[:35])
