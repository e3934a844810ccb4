"""Folders of every usual layout: what they are read as, what is refused, and what is said of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.data.__main__ import main
from expansion.data.datasets import load_dataset
from expansion.data.readers.split_folders import split_of
from tests.helpers.stand_ins import draw, folders

CLASSES = {"ant": 3, "bee": 3}


@pytest.fixture
def check(capsys):
    """Function that runs the check: (exit code, its report)."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["check", *map(str, arguments)])
        return code, capsys.readouterr().out

    return run


def lay(root: Path, *splits: str, classes: dict[str, int] = CLASSES) -> Path:
    for split in splits:
        folders(root / split, classes)
    return root


def sizes(root: Path, **options) -> tuple[int, int]:
    dataset = load_dataset(str(root), **options)
    assert dataset.class_names == ("ant", "bee")
    return len(dataset.records("train")), len(dataset.records("test"))


def flat(root: Path, count: int = 4) -> None:
    for i in range(count):
        draw(root / f"{i}.jpg")


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *((w, "train") for w in ("train", "TRAIN", "Training", "training_set", "Train Images")),
        *((w, "test") for w in ("test", "Testing", "test-set", "TestSet")),
        *((w, "val") for w in ("val", "Valid", "VALIDATION", "validation_data", "eval", "dev")),
        *((w, None) for w in ("images", "trains", "bullet_train", "value", "attestation", "")),
    ],
)
def test_the_usual_words_for_splits_are_understood_in_any_case(word, split):
    assert split_of(word) == split


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("train", "validation"),
        ("TRAIN", "Val"),
        ("training_set", "test_set"),
    ],
)
def test_split_folders_of_other_names_are_used(tmp_path, train, test):
    root = lay(tmp_path / "set", train, test)
    assert sizes(root) == (6, 6)
    assert load_dataset(str(root)).records("train")[0].file_name.startswith(f"{train}/ant/")


@pytest.mark.parametrize("second", ["Testing", "validation"])
def test_a_test_fraction_never_makes_classes_of_split_folders(tmp_path, second):
    root = lay(tmp_path / "set", "Training", second)
    with pytest.raises(InputError, match="has a test split"):
        load_dataset(str(root), test_fraction=0.3)


@pytest.mark.parametrize("pair", [("Train", "train"), ("val", "validation"), ("test", "Testing")])
def test_two_folders_for_one_split_are_both_named(tmp_path, pair):
    root = lay(tmp_path / "set", "train", *pair)
    with pytest.raises(InputError, match=f"{pair[0]}/ and {pair[1]}/|{pair[1]}/ and {pair[0]}/"):
        load_dataset(str(root))


def test_an_empty_folder_of_a_splits_name_does_not_count(tmp_path):
    root = lay(tmp_path / "set", "train", "test")
    (root / "Training").mkdir()
    assert sizes(root) == (6, 6)


def test_the_test_split_wins_over_validation_and_all_that_is_not_used_is_counted(tmp_path, check):
    root = lay(tmp_path / "set", "train", "test", "validation", "extra")
    draw(root / "stray.jpg")
    draw(root / "train" / "direct.png")
    for name in ("a.heic", "b.HEIC", "c.jpg_large", "d"):
        (root / "train" / "ant" / name).write_bytes(b"x")
    code, text = check(root)
    lines = text.splitlines()
    assert code == 0 and lines[-1] == "0 problems"
    assert "ignored: folder validation/ (6 images)" in lines
    assert "ignored: folder extra/ (6 images)" in lines
    assert "ignored: 1 image in train/" in lines
    assert "ignored: 1 image in the dataset folder itself" in lines
    assert "ignored: 2 .heic (convert to JPEG or PNG), 1 without suffix, 1 .jpg_large" in lines
    assert "images: 26 found = 12 used + 14 ignored" in lines


def test_a_class_folder_without_readable_files_says_what_it_holds(tmp_path):
    root = lay(tmp_path / "set", "train", "test")
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "1.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"cat holds no images, only 1 \.heic \(convert to JPEG"):
        load_dataset(str(root)).records("train")


def test_unlabelled_test_images_are_no_test_split(tmp_path, check):
    root = lay(tmp_path / "set", "train")
    flat(root / "test")
    code, text = check(root)
    assert code == 1 and "test has no class folders" in text and "--test_fraction 0.3" in text
    assert sizes(root, test_fraction=0.34) == (4, 2)
    lay(root, "val")
    code, text = check(root)
    assert code == 0 and "val/ is used as the test split, as" in text
    assert "ignored: folder test/ (4 images)" in text


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [(), ("--test_fraction", "0.3")])
@pytest.mark.parametrize("inside", ["Testing", "Testing/ant", "validation"])
def test_no_advice_and_no_option_leads_into_the_test_images(tmp_path, check, inside, fraction):
    root = lay(tmp_path / "set", "Training", "Testing", "validation")
    code, text = check(root / inside, *fraction)
    assert code == 1 and text.count("\n") == 1
    assert f"give {root / 'Testing'}" not in text and f"give {root / 'validation'}" not in text
    if inside != "Testing/ant":
        assert text.endswith(f"give {root}\n")


def test_the_training_folder_given_alone_says_that_the_test_folder_is_not_used(tmp_path, check):
    root = lay(tmp_path / "set", "Training", "Testing")
    code, text = check(root / "Training", "--test_fraction", "0.34")
    assert (
        code == 0 and f"Testing/ beside Training/ is not used; to test on it, give {root}" in text
    )


@pytest.mark.parametrize("fraction", [None, 0.3])
@pytest.mark.parametrize(
    ("splits", "named"),
    [
        (("images/train", "images/test"), "give .*/set/images"),
        (("seg_train/seg_train", "seg_test/seg_test"), "levels deeper|seg_train/ look like splits"),
        (("training_set/training_set", "test_set"), "holds only the folder training_set/"),
        (("ant/train", "ant/test", "bee/train", "bee/test"), "give .*/set/ant"),
        (("images", "masks"), "one of .*/set/images, .*masks|images/, masks/: pictures and their"),
        (("train/images", "train/labels"), "images/, labels/: pictures and their annotations"),
        (("train/Image", "train/Annotations", "test"), "Annotations/: pictures and their"),
    ],
)
def test_what_lies_where_class_folders_do_and_is_none_is_refused(tmp_path, splits, named, fraction):
    root = lay(tmp_path / "set", *splits)
    with pytest.raises(InputError, match=named):
        load_dataset(str(root), test_fraction=fraction)


def test_one_folder_of_pictures_is_no_class(tmp_path):
    for split in ("train", "test"):
        flat(tmp_path / "set" / split / "images")
    with pytest.raises(InputError, match="holds images/: no class, by its name"):
        load_dataset(str(tmp_path / "set"))


def test_that_validation_images_are_tested_on_is_said(tmp_path):
    root = lay(tmp_path / "set", "train", "Valid")
    assert load_dataset(str(root)).remarks == ("Valid/ is used as the test split",)


def test_splits_of_names_that_are_not_understood_are_no_classes(tmp_path):
    for place, names in (("a", ("seg_train", "seg_test")), ("b", ("train2017", "val2017"))):
        folders(tmp_path / place, dict.fromkeys(names, 3))
        with pytest.raises(InputError, match="look like splits, no classes; rename them"):
            load_dataset(str(tmp_path / place), test_fraction=0.3)
    folders(tmp_path / "c", {"test tube": 3, "train station": 3})
    assert len(load_dataset(str(tmp_path / "c"), test_fraction=0.3).class_names) == 2


def test_a_class_may_be_called_train_between_other_classes(tmp_path, check):
    folders(tmp_path / "set", {"airplane": 4, "car": 4, "train": 4})
    code, text = check(tmp_path / "set", "--test_fraction", "0.25")
    assert code == 0 and "folder train/ is a class here" in text and "3 classes" in text


@pytest.mark.parametrize("name", ["test", "Val", "train"])
def test_a_folder_that_may_be_a_class_or_a_split_is_asked_for(tmp_path, name):
    folders(tmp_path / "set", {"control": 4, name: 4})
    with pytest.raises(InputError, match=f"is {name}/ a class like control/, or images without"):
        load_dataset(str(tmp_path / "set"), test_fraction=0.25)


def test_unlabelled_images_beside_classes_are_no_class(tmp_path, check):
    folders(tmp_path / "set", {**CLASSES, "unlabelled": 4})
    assert sizes(tmp_path / "set", test_fraction=0.34) == (4, 2)
    _, text = check(tmp_path / "set", "--test_fraction", "0.34")
    place = tmp_path / "set" / "unlabelled"
    assert f"folder unlabelled/ (4 images; to use them: --unlabeled_dir {place})" in text


def test_classes_two_levels_deep_are_never_merged_silently(tmp_path, monkeypatch):
    deep = {"bird/crow": 2, "bird/owl": 2, "fish/eel": 2}
    root = lay(tmp_path / "data" / "deep", "train", "test", classes=deep)
    with pytest.raises(InputError, match=r"bird hold no images directly.*\(bird/crow, bird/owl\)"):
        load_dataset(str(root))
    monkeypatch.setattr("expansion.data.layouts.configs.CONFIG_DIR", tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "deep.yaml").write_text("sub_folders: true\n")
    dataset = load_dataset("deep", tmp_path / "data")
    assert dataset.class_names == ("bird", "fish")
    assert "outer folder: bird/crow (2), bird/owl (2), fish/eel (2)" in dataset.remarks[0]


def test_images_in_a_sub_folder_belong_to_their_class_and_that_is_said(tmp_path):
    root = lay(tmp_path / "set", "train", "test", classes={"ant": 1, "bee": 2, "ant/more": 2})
    dataset = load_dataset(str(root))
    assert [r.label for r in dataset.records("train")] == [0, 0, 0, 1, 1]
    assert dataset.remarks == (
        "images in sub-folders belong to the class of the outer folder: ant/more (2)",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints",
     ".Trash-1000", "System Volume Information", ".picasaoriginals", "__macosx"],
)  # fmt: skip
def test_folders_of_other_programs_are_no_classes_and_hold_no_images(tmp_path, name):
    root = lay(tmp_path / "set", "train", "test")
    (root / "train" / name).mkdir()
    (root / "train" / name / "._0.jpg").write_bytes(b"junk")
    assert load_dataset(str(root)).remarks == ()
    draw(root / "train" / name / "deep" / "1.jpg")
    draw(root / "train" / "ant" / name / "2.jpg")
    assert sizes(root) == (6, 6)
    remarks = load_dataset(str(root)).remarks
    assert f"ignored: folder train/{name}/ (1 image)" in remarks
    assert f"ignored: folder train/ant/{name}/ (1 image)" in remarks
    assert sizes(root / "train", test_fraction=0.34) == (4, 2)


def test_litter_files_are_neither_images_nor_counted(tmp_path):
    root = lay(tmp_path / "set", "train", "test")
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "train" / "ant" / name).write_bytes(b"junk")
    assert sizes(root) == (6, 6) and load_dataset(str(root)).remarks == ()


def test_links_to_images_and_folders_are_followed_but_not_in_circles(tmp_path):
    root = lay(tmp_path / "set", "train", "test")
    lay(tmp_path / "elsewhere", ".", classes={"more": 2, "cat": 2})
    train = root / "train"
    (train / "ant" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (train / "bee" / "one.jpg").symlink_to(tmp_path / "elsewhere" / "more" / "image_0000.jpg")
    (train / "ant" / "up").symlink_to("..")
    (train / "ant" / "round").symlink_to(root)
    (train / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    dataset = load_dataset(str(root))
    assert [sum(r.label == i for r in dataset.records("train")) for i in range(3)] == [5, 4, 2]
    assert (
        "not followed, as they lead back: the links train/ant/round, train/ant/up"
        in dataset.remarks
    )


def test_links_that_lead_nowhere_are_named(tmp_path):
    root = lay(tmp_path / "set", "train", "test")
    (root / "train" / "ant" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match=r"train/ant: links that lead nowhere: gone\.jpg"):
        load_dataset(str(root)).records("train")
    (root / "train" / "ant" / "gone.jpg").unlink()
    (root / "train" / "cat").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="train: links that lead nowhere: cat"):
        load_dataset(str(root))
    shutil.rmtree(root / "train")
    (root / "train").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="train is a link that leads nowhere"):
        load_dataset(str(root))


def test_classes_that_look_alike_are_a_problem(tmp_path, check):
    classes = {"cat": 2, "cat ": 2, "Cat": 2, "caf\u00e9": 2, "cafe\u0301": 2, "dog": 2}
    code, text = check(lay(tmp_path / "set", "train", "test", classes=classes))
    assert code == 1 and text.endswith("2 problems\n")
    assert "'Cat', 'cat', 'cat ' look alike" in text and "caf\u00e9' look alike" in text


def test_a_test_class_written_otherwise_is_led_to_its_twin(tmp_path):
    root = lay(tmp_path / "set", "train", classes={"Ant": 2, "bee": 2})
    lay(root, "test", classes={"ant": 2, "bee": 2})
    with pytest.raises(InputError, match="class 'ant' is not in .*it looks like Ant/ there"):
        load_dataset(str(root)).records("test")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_other_commands_log_the_remarks_once_for_all_processes(tmp_path, monkeypatch, caplog, rank):
    root = lay(tmp_path / "set", "train", "test", "val")
    monkeypatch.setenv("RANK", rank)
    with caplog.at_level("INFO"):
        load_dataset(str(root))
    assert caplog.text.count("set: ignored: folder val/ (6 images)") == (rank == "0")


@pytest.mark.slow
def test_a_path_is_no_name_even_if_its_last_part_is_one(tmp_path, monkeypatch, check):
    lay(tmp_path / "digits", "train", "test")
    monkeypatch.chdir(tmp_path)
    assert sizes(Path(f".{os.sep}digits").absolute()) == (6, 6)
    assert load_dataset("./digits").root == tmp_path / "digits"
    code, text = check("digits")
    assert code == 0 and "digits is read from data/digits; the folder ./digits is not used" in text
