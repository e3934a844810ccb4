"""Metadata files beside folders: which of the two tells the classes, and that it is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from tests.helpers.stand_ins import draw, folders, write_lines

LABELS = ("cat", "dog", "owl")


def counts(root: Path, split: str) -> dict[str, int]:
    return dict(Counter(r.class_name for r in load_dataset(str(root)).records(split)))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    write_lines(path, lines)


def survey(root: Path, split_column: bool = True, kind: str = "jsonl") -> Path:
    """Sessions as folders, labels in a file at the root."""
    rows = []
    for split, count in (("train", 6), ("test", 3)):
        for session in ("session1", "session2"):
            for i in range(count):
                row = {"file_name": f"{split}/{session}/{i}.png", "label": LABELS[i % 3]}
                draw(root / row["file_name"])
                rows.append({**row, "split": split} if split_column else row)
    write(root / f"metadata.{kind}", rows)
    return root


def per_split(root: Path, names=("train", "test"), kind: str = "jsonl") -> Path:
    """One file in each split folder, with paths relative to it."""
    for name in names:
        rows = [{"file_name": f"{i}.png", "label": LABELS[i % 3]} for i in range(6)]
        for row in rows:
            draw(root / name / row["file_name"])
        write(root / name / f"metadata.{kind}", rows)
    return root


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("split_column", [True, False])
def test_a_labelled_file_at_the_root_wins_over_the_names_of_folders(tmp_path, split_column, kind):
    root = survey(tmp_path / "set", split_column, kind)
    assert counts(root, "train") == dict.fromkeys(LABELS, 4)
    assert counts(root, "test") == dict.fromkeys(LABELS, 2)
    assert load_dataset(str(root)).remarks == (
        f"labels from metadata.{kind}; the folder names session1, session2 are not used",
    )


def test_the_split_folders_of_a_labelled_file_are_not_split_anew(tmp_path):
    root = survey(tmp_path / "set", split_column=False)
    with pytest.raises(InputError, match="has a test split"):
        load_dataset(str(root), test_fraction=0.3)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("names", [("train", "test"), ("Training", "validation")])
def test_one_file_in_each_split_folder_is_read(tmp_path, names, kind):
    root = per_split(tmp_path / "set", names, kind)
    for split, name in zip(("train", "test"), names, strict=True):
        assert counts(root, split) == dict.fromkeys(LABELS, 2)
        records = load_dataset(str(root)).records(split)
        assert all(r.file_name.startswith(f"{name}/") and r.path.is_file() for r in records)


def test_the_file_of_the_test_split_wins_over_that_of_validation(tmp_path):
    root = per_split(tmp_path / "set", ("train", "test", "val"))
    dataset = load_dataset(str(root))
    assert dataset.records("test")[0].file_name == "test/0.png"
    assert "ignored: folder val/ (6 images)" in dataset.remarks


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_the_test_folder_alone_is_no_dataset_with_its_own_file_either(tmp_path, fraction):
    root = per_split(tmp_path / "set")
    with pytest.raises(InputError, match=f"test is the test split of {root}, beside train/; give"):
        load_dataset(str(root / "test"), test_fraction=fraction)


def test_that_validation_images_are_tested_on_is_said(tmp_path):
    root = per_split(tmp_path / "set", ("train", "val"))
    assert load_dataset(str(root)).remarks == ("val/ is used as the test split",)


def test_a_split_of_its_own_can_be_made_of_a_lone_training_file(tmp_path):
    root = per_split(tmp_path / "set", ("train",))
    dataset = load_dataset(str(root), test_fraction=0.5)
    assert [len(dataset.records(split)) for split in ("train", "test")] == [3, 3]


def test_a_split_folder_without_its_file_is_named(tmp_path):
    root = per_split(tmp_path / "set")
    (root / "test" / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match="train/metadata.jsonl tells labels, but .*/test has no"):
        load_dataset(str(root))
    folders(tmp_path / "other" / "train", {"ant": 2, "bee": 2})
    per_split(tmp_path / "other", ("test",))
    with pytest.raises(InputError, match="test/metadata.jsonl tells labels, but .*/train has no"):
        load_dataset(str(tmp_path / "other"))


@pytest.mark.parametrize("place", [".", "train"])
def test_two_metadata_files_in_one_folder_are_both_named(tmp_path, place):
    root = per_split(tmp_path / "set") if place == "train" else survey(tmp_path / "set")
    write(root / place / "metadata.csv", [{"file_name": "0.png", "label": "old"}])
    with pytest.raises(InputError, match="holds metadata.jsonl and metadata.csv; remove"):
        load_dataset(str(root))


def test_labels_at_the_root_and_in_a_split_folder_are_both_named(tmp_path):
    root = per_split(tmp_path / "set")
    write(root / "metadata.csv", [{"file_name": "train/0.png", "label": "old"}])
    with pytest.raises(InputError, match="metadata.csv and test/metadata.jsonl, .* give labels"):
        load_dataset(str(root))


@pytest.mark.parametrize("place", [".", "train"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_without_labels_leaves_the_classes_to_the_folders_and_that_is_said(
    tmp_path, place, kind
):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {"ant": 2, "bee": 2})
    write(tmp_path / "set" / place / f"metadata.{kind}", [{"file_name": "a.png", "text": "an ant"}])
    dataset = load_dataset(str(tmp_path / "set"))
    assert dataset.class_names == ("ant", "bee")
    assert any("has no column 'label' and is not used" in remark for remark in dataset.remarks)


def test_a_file_without_labels_and_without_class_folders_is_refused(tmp_path):
    draw(tmp_path / "set" / "0.png")
    write(tmp_path / "set" / "metadata.csv", [{"file_name": "0.png", "text": "an ant"}])
    with pytest.raises(InputError, match="no 'label'"):
        load_dataset(str(tmp_path / "set"), test_fraction=0.5)


def test_images_that_no_row_names_are_counted(tmp_path):
    root = survey(tmp_path / "set")
    draw(root / "train" / "session1" / "late.png")
    draw(root / "raw" / "1.png")
    remarks = load_dataset(str(root)).remarks
    assert "ignored: 1 image in train/session1/" in remarks
    assert "ignored: folder raw/ (1 image)" in remarks
    assert "images: 20 found = 18 used + 2 ignored" in remarks


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_in_another_encoding_is_refused_by_name_and_not_passed_over(
    tmp_path, encoding, kind
):
    path = survey(tmp_path / "set", kind=kind) / f"metadata.{kind}"
    text = path.read_text().replace("owl", "\u00fcbel" if kind == "csv" else "owl")
    text = text.replace("cat", "k\u00e4fer")
    path.write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=rf"metadata\.{kind}.*UTF-8"):
        load_dataset(str(tmp_path / "set")).records("train")
