"""Splits by seed and subsets, and the file lists that keep them."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import train_original
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data import stored_splits
from expansion.data.datasets import choose_subset, load_dataset, write_subset
from expansion.data.splits import SplitOptions, hold_out, split_by_class
from expansion.images.records import ImageRecord
from tests.helpers.stand_ins import draw, folders


def counts(dataset) -> dict[str, dict[str, int]]:
    return {
        split: dict(Counter(r.class_name for r in dataset.records(split)))
        for split in ("train", "test")
    }


def everything(root: Path) -> list[ImageRecord]:
    classes = sorted(path.name for path in root.iterdir())
    return [
        ImageRecord(path, path.relative_to(root).as_posix(), label, name)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
    ]


def test_the_split_of_one_folder_follows_from_seed_and_names_alone(tmp_path):
    folders(tmp_path / "a" / "set", {"cat": 10, "dog": 20})
    folders(tmp_path / "b" / "set", {"dog": 20, "cat": 10})  # other pixels, other order
    names = []
    for place in ("a", "b"):
        dataset = load_dataset(str(tmp_path / place / "set"), test_fraction=0.3)
        assert counts(dataset) == {"train": {"cat": 7, "dog": 14}, "test": {"cat": 3, "dog": 6}}
        names.append([r.file_name for r in dataset.records("test")])
    assert names[0] == names[1]
    stored = tmp_path / "a" / "set" / "split-set-test-0.3-seed0.json"
    assert sorted(json.loads(stored.read_text())["test"]) == sorted(names[0])


def test_a_small_share_still_tests_one_image_of_each_class(tmp_path):
    folders(tmp_path / "set", {"cat": 5, "dog": 9})
    dataset = load_dataset(str(tmp_path / "set"), test_fraction=0.01)
    assert counts(dataset)["test"] == {"cat": 1, "dog": 1}


def copied(root: Path, *pairs: tuple[str, str]) -> None:
    """Copy images, and save some of them anew: other bytes, the same pixels."""
    for i, (one, other) in enumerate(pairs):
        shutil.copy(root / one, root / other)
        if i % 2:
            with Image.open(root / one) as image:
                image.load()
            image.save(root / other, format="BMP")


def pixels(records) -> set[bytes]:
    return {record.load().tobytes() for record in records}


def test_copies_of_an_image_are_never_on_both_sides(tmp_path):
    # Every image of cat/ occurs twice, one of dog/ three times, one of ant/ in bee/ as well.
    root = tmp_path / "set"
    folders(root, {"ant": 6, "bee": 5, "cat": 6, "dog": 9})
    copied(root, *((f"cat/image_{i:04d}.jpg", f"cat/image_{i:04d} (1).jpg") for i in range(6)))
    copied(root, *(("dog/image_0004.jpg", f"dog/more{i}.jpg") for i in range(2)))
    copied(root, ("ant/image_0000.jpg", "bee/other.jpg"))
    contents = {"ant": 6, "bee": 5, "cat": 6, "dog": 9}
    for seed in range(20):
        for options in ({"test_fraction": 0.4}, {"train_per_class": 3}):
            train, test = split_by_class(everything(root), SplitOptions(split_seed=seed, **options))
            assert not pixels(train) & pixels(test)
            assert len(train) + len(test) == sum(contents.values()) + 9
            torn = {r.file_name for r in train} & {"ant/image_0000.jpg", "bee/other.jpg"}
            assert len(torn) == 2  # what shows two classes is no test of either
    # Whole groups of copies fill up the share: of 12 cats 40 % are 5, hence two pairs.
    train, test = split_by_class(everything(root), SplitOptions(test_fraction=0.4))
    assert Counter(r.class_name for r in test) == {"ant": 2, "bee": 2, "cat": 4, "dog": 4}
    train, val = hold_out(train, 0.4, seed=3)
    assert val and not pixels(train) & pixels(val)


def test_a_class_of_copies_alone_cannot_be_split(tmp_path):
    root = tmp_path / "set"
    folders(root, {"ant": 1, "bee": 4})
    copied(root, ("ant/image_0000.jpg", "ant/again.jpg"))
    with pytest.raises(InputError, match=r"class 'ant': each of its images occurs several times"):
        split_by_class(everything(root), SplitOptions(test_fraction=0.5))


def test_training_warns_of_test_images_that_are_training_images(tmp_path, caplog):
    root = tmp_path / "set"
    for split in ("train", "test"):
        folders(root / split, {"ant": 3, "bee": 3})
    words = "-a resnet10_tiny --image_size 8 --resize_size 9 --epochs 1 --seeds 1 --workers 0"
    command = ["-d", str(root), *words.split(), "--checkpoint_dir", str(tmp_path / "runs")]
    train_original.main([*command, "--dry_run"])
    assert "warning" not in caplog.text
    with Image.open(root / "train/ant/image_0001.jpg") as image:
        image.save(root / "test/ant/again.bmp")  # other bytes, the same pixels
    copied(root, ("test/bee/image_0000.jpg", "test/ant/bee.jpg"))
    train_original.main(command)
    pair = "train/ant/image_0001.jpg = test/ant/again.bmp"
    assert f"1 of 8 test images are training images too: {pair}" in caplog.text
    assert "1 test images bear several labels: test/ant/bee.jpg = test/bee/im" in caplog.text
    (results,) = (tmp_path / "runs").rglob("results.yaml")
    assert load_yaml(results).values["num_test_learnt"] == 1


def test_a_training_folder_without_a_test_folder_is_a_hole_not_a_raw_set(tmp_path):
    folders(tmp_path / "caltech-101" / "train", {"cat": 40, "dog": 40})
    dataset = load_dataset("caltech-101", tmp_path)
    with pytest.raises(InputError, match="no folder test/"):
        dataset.records("test")
    halves = counts(load_dataset("caltech-101", tmp_path, 0.5))
    assert halves == {"train": {"cat": 20, "dog": 20}, "test": {"cat": 20, "dog": 20}}


def test_a_stored_split_is_followed_and_must_fit(tmp_path):
    root = tmp_path / "set"
    folders(root, {"cat": 4, "dog": 4})
    load_dataset(str(root), test_fraction=0.25).records("test")
    stored = root / "split-set-test-0.25-seed0.json"
    lists = json.loads(stored.read_text())
    swapped = {"train": lists["test"], "test": lists["train"]}
    stored.write_text(json.dumps(swapped))
    assert counts(load_dataset(str(root), test_fraction=0.25))["train"] == {"cat": 1, "dog": 1}
    draw(root / "cat" / "new.jpg")
    with pytest.raises(InputError, match="does not name 1 images: cat/new.jpg"):
        load_dataset(str(root), test_fraction=0.25).records("train")
    (root / "cat" / "new.jpg").unlink()
    (root / lists["train"][0]).unlink()
    with pytest.raises(InputError, match="not there: .*remove the file"):
        load_dataset(str(root), test_fraction=0.25).records("train")


def test_a_folder_that_cannot_be_written_is_split_the_same_way(tmp_path, monkeypatch):
    root = tmp_path / "set"
    folders(root, {"cat": 6, "dog": 6})

    def refuse(path: Path, content: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as context:
        context.setattr(stored_splits, "write_atomic", refuse)
        without = load_dataset(str(root), test_fraction=0.5).records("test")
    assert not list(root.glob("split-*"))
    assert load_dataset(str(root), test_fraction=0.5).records("test") == without


@pytest.mark.parametrize(
    ("fraction", "named"),
    [(0.0, "test_fraction 0"), (1.0, "test_fraction 1"), (0.9, "'dog' has only 1")],
)
def test_a_split_that_leaves_nothing_is_refused(tmp_path, fraction, named):
    folders(tmp_path / "set", {"cat": 30, "dog": 1})
    with pytest.raises(InputError, match=named):
        load_dataset(str(tmp_path / "set"), test_fraction=fraction).records("train")


def test_a_class_with_too_few_images_for_the_split_is_named(tmp_path):
    folders(tmp_path / "caltech-101" / "101_ObjectCategories", {"ant": 31, "bee": 30})
    with pytest.raises(InputError, match="train_per_class 30: class 'bee' has only 30"):
        load_dataset("caltech-101", tmp_path).records("train")


def test_a_set_with_a_test_split_takes_no_test_fraction(tmp_path):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {"cat": 2, "dog": 2})
    with pytest.raises(InputError, match=r"--test_fraction 0\.3.* has a test split"):
        load_dataset(str(tmp_path / "set"), test_fraction=0.3)


def test_a_chosen_subset_is_written_once_and_read_again(tmp_path):
    folders(tmp_path / "set" / "train", {"cat": 9, "dog": 9})
    everything = load_dataset(str(tmp_path / "set")).records("train")
    path = str(tmp_path / "lists" / "subset.json")
    with pytest.raises(InputError, match="does not exist; give --shots"):
        choose_subset(everything, None, 0, path)
    chosen = choose_subset(everything, 2, 7, path)
    write_subset(chosen, 2, 7, path)
    assert (
        choose_subset(everything, None, 0, path) == choose_subset(everything, 2, 7, path) == chosen
    )
    for settings in ((3, 7), (2, 8)):
        with pytest.raises(InputError, match="was made with"):
            choose_subset(everything, *settings, path)
    with pytest.raises(
        InputError, match="no training images: train/cat|no training images: train/dog"
    ):
        choose_subset([r for r in everything if r not in chosen], None, 0, path)
    write_subset(everything, 9, 7, path)
    assert choose_subset(everything, 2, 7, path) == chosen  # it was not written over
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps([everything[3].file_name]))
    assert choose_subset(everything, None, 0, str(bare)) == [everything[3]]


@pytest.mark.slow
def test_a_stored_split_is_followed_without_its_option(tmp_path, capsys):
    root = tmp_path / "set"
    folders(root, {"cat": 10, "dog": 10})
    (root / "split-second.json").write_text("a file of somebody's own")
    with pytest.raises(InputError, match="give --test_fraction 0.3"):
        load_dataset(str(root))
    made = load_dataset(str(root), test_fraction=0.2)
    names = [[r.file_name for r in made.records(split)] for split in ("train", "test")]
    followed = load_dataset(str(root))
    assert [[r.file_name for r in followed.records(s)] for s in ("train", "test")] == names
    assert not train_original.main(["-d", str(root), "--dry_run"])
    assert "16 real + 0 generated; 0 held out, 4 for testing" in capsys.readouterr().out


def test_a_stored_split_does_not_count_where_there_are_test_images(tmp_path):
    root = tmp_path / "set"
    folders(root / "train", {"cat": 4, "dog": 4})
    load_dataset(str(root), test_fraction=0.5).records("test")
    folders(root / "test", {"cat": 3, "dog": 3})
    assert counts(load_dataset(str(root)))["test"] == {"cat": 3, "dog": 3}
