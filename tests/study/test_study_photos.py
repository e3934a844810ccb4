"""The photos of a study: test images set apart, what is left out, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.study.config import read_command_line, settle
from expansion.study.photos import look_at
from tests.helpers.stand_ins import folders


@pytest.fixture
def photos_dir(tmp_path) -> Path:
    """Class folders without a split."""
    folders(tmp_path / "photos", {"ant": 6, "bee": 4})
    return tmp_path / "photos"


def test_photos_without_test_images_are_split_once_and_followed_without_an_option(photos_dir):
    config = settle(read_command_line([str(photos_dir)], ""), "small").config
    first, second = look_at(config), look_at(config)
    assert first.new_split and not second.new_split
    assert first.split == second.split == photos_dir / "split-photos-test-0.3-seed0.json"
    assert "--test_fraction" not in first.place
    assert (len(first.train), len(first.test)) == (7, 3)
    assert "some of each class were set apart" in first.describe()
    followed = load_dataset(str(photos_dir))
    assert [r.file_name for r in followed.records("test")] == [r.file_name for r in first.test]


def test_a_split_that_is_there_counts_whatever_its_share(photos_dir):
    load_dataset(str(photos_dir), test_fraction=0.5).records("test")
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert (len(photos.train), len(photos.test)) == (5, 5)
    assert photos.split.name == "split-photos-test-0.5-seed0.json" and not photos.new_split


def test_of_two_splits_one_must_be_named(photos_dir):
    for fraction in (0.3, 0.5):
        load_dataset(str(photos_dir), test_fraction=fraction).records("test")
    with pytest.raises(InputError, match=r"holds the splits .*0\.3.*0\.5.*remove all but one"):
        look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    words = [str(photos_dir), "--test_fraction", "0.5"]
    photos = look_at(settle(read_command_line(words, ""), "small").config)
    assert photos.place[-2:] == ("--test_fraction", "0.5") and len(photos.test) == 5


def test_a_folder_that_cannot_be_written_has_its_share_in_every_command(photos_dir, monkeypatch):
    import errno

    from expansion.data import stored_splits

    def refuse(path: Path, content: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(stored_splits, "write_atomic", refuse)
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert photos.split is None and photos.place[-2:] == ("--test_fraction", "0.3")


def test_a_training_folder_alone_is_split_and_a_list_without_splits_too(tmp_path):
    folders(tmp_path / "set" / "train", {"ant": 4, "bee": 4})
    folders(tmp_path / "list", {"x": 8})
    files = sorted((tmp_path / "list" / "x").iterdir())
    rows = [{"file_name": f"x/{p.name}", "label": "ab"[i % 2]} for i, p in enumerate(files)]
    (tmp_path / "list" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for place in ("set", "list"):
        look_at(settle(read_command_line([str(tmp_path / place)], ""), "small").config)
        dataset = load_dataset(str(tmp_path / place))
        assert len(dataset.records("train")) == 6 and len(dataset.records("test")) == 2


@pytest.mark.parametrize(("tree", "told"), [
    ({"ant": 6, "bee": 1}, "class 'bee' has only 1 image, so none is left for training"),
    ({"ant": 6}, "only the class 'ant'"),
    ({"train/ant": 1, "train/bee": 1}, "class 'ant' has only 1 image"),
])  # fmt: skip
def test_photos_that_no_answer_can_be_had_from_are_refused_in_one_line(tmp_path, tree, told):
    for name, number in tree.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        folders(tmp_path / "set", {name: number} if number else {})
    with pytest.raises(InputError) as error:
        look_at(settle(read_command_line([str(tmp_path / "set")], ""), "small").config)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_test_folder_without_images_is_as_none(tmp_path):
    folders(tmp_path / "set" / "train", {"ant": 4, "bee": 4})
    (tmp_path / "set" / "test" / "ant").mkdir(parents=True)
    photos = look_at(settle(read_command_line([str(tmp_path / "set")], ""), "small").config)
    assert photos.new_split and (len(photos.train), len(photos.test)) == (6, 2)


def test_an_unreadable_photo_is_left_out_with_a_word(photos_dir):
    (photos_dir / "ant" / "broken.jpg").write_bytes(b"no image")
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert photos.place[-2:] == ("--on_error", "skip")
    text = photos.describe()
    assert "1 image is left out: cannot read the image" in text and "ant/broken.jpg" in text
    assert "--on_error" not in text


def test_what_is_not_used_is_told_once(photos_dir):
    (photos_dir / "ant" / "phone.heic").write_bytes(b"not read")
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert "ignored: 1 .heic" in photos.describe()
    assert any(line.startswith("photos: ignored: 1 .heic") for line in photos.said)


def test_photos_that_are_trained_and_tested_on_are_told(tmp_path):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {"ant": 3, "bee": 3})
    (first, *_) = (tmp_path / "set" / "train" / "ant").iterdir()
    shutil.copy(first, tmp_path / "set" / "test" / "ant" / "copy.jpg")
    photos = look_at(settle(read_command_line([str(tmp_path / "set")], ""), "small").config)
    assert "test images are training images too" in photos.describe()
