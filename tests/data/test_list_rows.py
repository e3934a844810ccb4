"""Rows of lists: every one is used, counted or refused with its line; labels have one spelling."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.data.__main__ import main
from expansion.data.datasets import ImageDataset, load_dataset
from expansion.data.readers.lists import ListLayout, read_lists
from tests.helpers.stand_ins import aircraft, cub, draw, write_lines

HEADER = "file_name,label,split"
ROWS = ["0.png,cat,train", "1.png,dog,train", "2.png,cat,test", "3.png,dog,test"]


@pytest.fixture
def listed(tmp_path):
    """Function that writes a list beside eight images and loads the folder."""

    def load(lines, name: str = "metadata.csv", fraction: float | None = None) -> ImageDataset:
        for i in range(8):
            draw(tmp_path / "set" / f"{i}.png")
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        write_lines(tmp_path / "set" / name, texts)
        return load_dataset(str(tmp_path / "set"), test_fraction=fraction)

    return load


def counts(dataset: ImageDataset) -> tuple[dict[str, int], dict[str, int]]:
    found = (Counter(r.class_name for r in dataset.records(s)) for s in ("train", "test"))
    return tuple(map(dict, found))


def words(*splits: object) -> list[str]:
    """A CSV file whose rows have these words as their split."""
    return [
        HEADER,
        *(f"{i}.png,{'dog' if i % 2 else 'cat'},{word}" for i, word in enumerate(splits)),
    ]


BOTH = ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 2})


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "TEST"),
        ("training", "Testing"),
        (" train ", "test\u00a0"),
        ("train\u200b", "\ufefftest"),
        ("trainset", "testset"),
        ("train", "val"),
        ("TRAINING", "Validation"),
        ("train", "valid"),
        ("train", "dev"),
    ],
)
def test_split_words_are_understood_in_any_case_and_their_usual_forms(listed, train, test):
    dataset = listed(words(*[train] * 4, *[test] * 4))
    assert counts(dataset) == BOTH
    assert not [remark for remark in dataset.reader.remarks if "ignored" in remark]


@pytest.mark.parametrize(
    ("splits", "train", "test", "remarks"),
    [
        (
            ["train", "train", "test", "test", "holdout"],
            2,
            2,
            ["ignored: 1 row with split 'holdout'"],
        ),
        (
            ["train", "train", "test", "test", "val", "val"],
            2,
            2,
            ["ignored: 2 rows with split 'val'"],
        ),
        (["train", "train", "test", "test", "", ""], 2, 2, ["ignored: 2 rows without a split"]),
        (
            ["train", "Train", "valid", "val", "", "x"],
            2,
            2,
            [
                "tested on: the 2 rows for validation, as there are none for test",
                "ignored: 1 row without a split",
                "ignored: 1 row with split 'x'",
            ],
        ),
        (["train", "training", "test", "Test"], 2, 2, []),
    ],
)
def test_rows_that_are_not_used_are_counted_with_their_word(listed, splits, train, test, remarks):
    dataset = listed(words(*splits))
    assert [len(dataset.records(split)) for split in ("train", "test")] == [train, test]
    assert list(dataset.reader.remarks) == remarks


def test_rows_of_json_lines_are_counted_alike(listed):
    splits = ["Train", "training", "TEST", "testing", None, float("nan"), "holdout"]
    rows = [
        {"file_name": f"{i}.png", "label": "cat dog".split()[i % 2], "split": split}
        for i, split in enumerate(splits)
    ]
    dataset = listed([*rows, {"file_name": "7.png", "label": "cat"}], "metadata.jsonl")
    assert [len(dataset.records(split)) for split in ("train", "test")] == [2, 2]
    assert list(dataset.reader.remarks) == [
        "ignored: 3 rows without a split",
        "ignored: 1 row with split 'holdout'",
    ]


def test_rows_left_out_of_a_split_by_seed_are_counted_too(listed):
    dataset = listed(words(*["train"] * 6, "holdout", ""), fraction=0.5)
    assert sum(len(dataset.records(split)) for split in ("train", "test")) == 6
    assert len(dataset.reader.remarks) == 2


def test_a_list_without_training_rows_names_its_words(listed):
    with pytest.raises(InputError, match=r"no row is for training; its splits are '1' \(2\), '0'"):
        listed(words("1", "1", "0"))
    with pytest.raises(InputError, match="no column 'split' with words in it"):
        listed(words("", "", ""))


def test_a_row_of_a_training_list_that_says_test_is_counted(tmp_path):
    for i in range(4):
        draw(tmp_path / f"{i}.png")
    write_lines(tmp_path / "a.csv", [HEADER, "0.png,cat,train", "1.png,cat,", "3.png,cat,test"])
    write_lines(tmp_path / "b.csv", [HEADER, "2.png,cat,val"])
    reader = read_lists(ListLayout(train=("a.csv",), test=("b.csv",)), tmp_path, "set")
    assert [len(reader.records(split)) for split in ("train", "test")] == [2, 1]
    assert reader.remarks == ("ignored: 1 row with split 'test'",)


@pytest.mark.parametrize(
    "cell", ["cat ", "\tcat", " cat\u00a0", "cat\u200b", "\ufeffcat", '"cat "', "cat\u3000"]
)
def test_blanks_around_a_label_make_no_second_class(listed, cell):
    dataset = listed([HEADER, f"0.png,{cell},train", *ROWS[1:], "4.png,cat,train"])
    assert dataset.class_names == ("cat", "dog")
    assert counts(dataset)[0] == {"cat": 2, "dog": 1}


def test_blanks_around_headers_cells_and_file_names_are_stripped(listed, tmp_path):
    assert counts(listed([line.replace(",", " , ") for line in [HEADER, *ROWS]])) == (
        {"cat": 1, "dog": 1},
        {"cat": 1, "dog": 1},
    )
    (tmp_path / "set/metadata.csv").unlink()
    rows = [dict(zip(HEADER.split(","), row.split(","), strict=True)) for row in ROWS]
    spaced = [{f" {k}\u00a0": f"\u200b{v} " for k, v in row.items()} for row in rows]
    assert counts(listed(spaced, "metadata.jsonl"))[1] == {"cat": 1, "dog": 1}


def test_a_quoted_cell_after_a_blank_is_no_other_class(listed):
    dataset = listed([HEADER, '0.png, "cat, big", train', '1.png,"cat, big" ,test'])
    assert dataset.class_names == ("cat, big",)


@pytest.mark.parametrize("header", ["File_Name,Label,SPLIT", "FILE_NAME,label,Split"])
def test_capitals_in_a_header_do_not_matter(listed, header):
    assert counts(listed([header, *ROWS])) == ({"cat": 1, "dog": 1}, {"cat": 1, "dog": 1})


@pytest.mark.parametrize("name", ["image", "filename", "path"])
def test_other_names_of_columns_are_refused_with_those_that_are_there(listed, name):
    with pytest.raises(InputError, match=f"no 'file_name'; the columns are {name}, label, split"):
        listed([HEADER.replace("file_name", name), *ROWS])


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([HEADER, "0.png,cat,train", "1.png,cat,big,train"], "line 3: 4 cells, but the header has"),
        ([HEADER, "0.png,cat,train", "1.png,cat"], "line 3: 2 cells, but the header has 3"),
        ([HEADER, "0.png,cat,train,", "1.png,cat,train"], "line 2: 4 cells"),
        ([HEADER, '"0.png","c""a', 't",train', "", "1.png,cat"], "line 2: a line break in 'label'"),
        (["file_name,x,label", '0.png,"two', 'lines",cat', "1.png,cat"], "line 4: 2 cells"),
        ([HEADER, '0.png,"cat,train', "1.png,dog,train"], "line 2: a quotation mark is opened"),
        (["file_name,label,label", "0.png,a,b"], "line 1: the column 'label' occurs twice"),
        (["file_name,label, label ", "0.png,a,b"], "line 1: the column 'label' occurs twice"),
        (["file_name,label,Label", "0.png,a,b"], "'label' and 'Label' are one column"),
        ([HEADER, "0.png,cat,train", "1.png,,train"], "line 3: 'label' is empty"),
        ([HEADER, "0.png,cat,train", "1.png,\u200b ,train"], "line 3: 'label' is empty"),
        ([HEADER, "0.png,cat,train", " ,cat,train"], "line 3: 'file_name' is empty"),
        ([HEADER, "0.png,cat,train", "1.png,nan,train"], "line 3: the class is 'nan', which is no"),
        ([HEADER, "0.png,cat,train", "1.png,NULL,train"], "line 3: the class is 'NULL'"),
    ],
)
def test_a_wrong_row_of_a_table_is_an_error_with_its_line(listed, lines, named):
    with pytest.raises(InputError, match=named):
        listed(lines, fraction=0.5).records("train")


@pytest.mark.parametrize("end", ["", "\n\n", "\n , ,\n", "\n,,,,\n \n"])
def test_blank_lines_are_no_rows(listed, end, tmp_path):
    dataset = listed(["", HEADER, *ROWS[:2], "", *ROWS[2:]])
    path = tmp_path / "set/metadata.csv"
    path.write_text(path.read_text() + end)
    assert counts(load_dataset(str(tmp_path / "set"))) == counts(dataset)
    assert load_dataset(str(tmp_path / "set")).reader.remarks == ()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_with_semicolons_or_tabs_are_read(listed, separator):
    dataset = listed([line.replace(",", separator) for line in [HEADER, *ROWS]])
    assert counts(dataset) == ({"cat": 1, "dog": 1}, {"cat": 1, "dog": 1})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.encode("utf-16"), "as UTF-8 text: .*; save it as UTF-8"),
        (lambda text: text.replace("cat", "caf\u00e9").encode("cp1252"), "save it as UTF-8"),
        (lambda text: text.replace("0.png", "a\\0.png").encode(), "write / instead of"),
        (lambda text: text.replace("0.png", "/a/0.png").encode(), "write paths relative to it"),
        (lambda text: text.replace("0.png", "../0.png").encode(), "outside the folder"),
    ],
)
def test_lists_of_other_forms_are_refused_in_one_line(listed, tmp_path, change, named):
    listed([HEADER, *ROWS])
    path = tmp_path / "set/metadata.csv"
    path.write_bytes(change(path.read_text()))
    with pytest.raises(InputError, match=named) as caught:
        load_dataset(str(tmp_path / "set")).records("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [(1, 1.0, "1"), ("1.0", 1, " 1 "), (1.0, "1.000", "1\u00a0")])
def test_a_whole_number_is_one_class_however_it_is_written(listed, values):
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate((*values, 2, 2))]
    assert listed(rows, "metadata.jsonl", 0.4).class_names == ("1", "2")


def test_a_table_of_a_spreadsheet_has_the_classes_of_one_written_by_hand(listed):
    assert listed(
        ["file_name,label", "0.png,1.0", "1.png,1", "2.png,0.0", "3.png,0"], "metadata.csv", 0.5
    ).class_names == ("0", "1")


def test_text_that_only_looks_like_a_number_stays(listed):
    rows = ["0.png,001", "1.png,001", "2.png,1.50", "3.png,1.50"]
    assert listed(["file_name,label", *rows], fraction=0.5).class_names == ("001", "1.50")


@pytest.mark.parametrize(
    ("label", "named"),
    [
        (None, "line 2: 'label' is empty"),
        ("", "line 2: 'label' is empty"),
        (" \u200b", "line 2: the class is missing"),
        (float("nan"), "line 2: the class is missing"),
        (float("inf"), "line 2: the class is inf, too large"),
        (2**60, "line 2: the class is .*, too large a number"),
        (True, "line 2: the class is True; write it as text"),
        (["cat"], "line 2: the class is .*; write it as text"),
        ({"id": 1}, "line 2: the class is .*; write it as text"),
    ],
)
def test_what_is_no_class_is_an_error_with_its_line(listed, label, named):
    rows = [{"file_name": "0.png", "label": "cat"}, {"file_name": "1.png", "label": label}]
    with pytest.raises(InputError, match=named):
        listed(rows, "metadata.jsonl", 0.5)


def test_a_key_given_twice_in_one_object_is_refused(listed):
    with pytest.raises(InputError, match="line 1: no JSON .*'label' occurs twice"):
        listed(['{"file_name": "0.png", "label": "a", "label": "b"}'], "metadata.jsonl", 0.5)


def test_a_row_that_repeats_an_image_counts_once_and_is_told(listed):
    dataset = listed([HEADER, *ROWS, ROWS[0], "./0.png,cat,train", ".//1.png,dog,Train"])
    assert counts(dataset) == ({"cat": 1, "dog": 1}, {"cat": 1, "dog": 1})
    assert dataset.reader.remarks == (
        "ignored: 3 rows of images listed already: 0.png, 0.png, 1.png",
    )


def test_an_image_of_two_classes_is_refused_however_its_path_is_written(listed):
    dataset = listed([HEADER, *ROWS, "./0.png,dog,train"])
    with pytest.raises(InputError, match="0.png is listed as 'cat' and as 'dog'"):
        dataset.records("train")


@pytest.mark.parametrize("label", ["cat", "dog"])
def test_an_image_in_both_splits_is_refused(listed, label):
    with pytest.raises(InputError, match="1 images are listed for training and for testing: 0.png"):
        listed([HEADER, *ROWS, f"0.png,{label},test"])


@pytest.mark.parametrize("label", ["Cat", "CAT", "001", "c_at"])
def test_classes_that_look_alike_are_a_problem_of_the_check(listed, tmp_path, capsys, label):
    other = {"001": "1", "c_at": "c at"}.get(label, "cat")
    rows = [f"{i}.png,{label if i % 2 else other},train" for i in range(4)]
    listed([HEADER, *rows, f"4.png,{other},test"])
    assert main(["check", str(tmp_path / "set")]) == 1
    line = f"the classes {', '.join(map(repr, sorted([label, other])))} look alike"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_labels_and_file_names_are_found_in_any_unicode_form(tmp_path, forms):
    in_list, on_disk = (lambda text, f=form: unicodedata.normalize(f, text) for form in forms)
    rows = []
    for i, split in enumerate(("train", "train", "test", "test")):
        draw(tmp_path / on_disk(f"for\u00eat/\u00e9t\u00e9 {i}.png"))
        label = (in_list, on_disk)[i % 2]("ch\u00eane")
        rows.append(
            {
                "file_name": in_list(f"for\u00eat/\u00e9t\u00e9 {i}.png"),
                "label": label,
                "split": split,
            }
        )
    write_lines(tmp_path / "metadata.jsonl", map(json.dumps, rows))
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("ch\u00eane",)
    for split in ("train", "test"):
        assert len(dataset.records(split)) == 2
        assert all(
            r.path.is_file() and r.path == tmp_path / r.file_name for r in dataset.records(split)
        )


def test_two_files_that_differ_in_unicode_form_stay_two_images(tmp_path):
    names = ["caf\u00e9.png", "cafe\u0301.png"]
    for name in names:
        draw(tmp_path / name)
    rows = [{"file_name": n, "label": c} for n, c in zip(names, "ab", strict=True)]
    write_lines(tmp_path / "metadata.jsonl", map(json.dumps, [*rows, *rows]))
    reader = read_lists(ListLayout(images="metadata.jsonl", train_per_class=1), tmp_path, "set")
    assert {r.file_name: r.class_name for r in reader._records(reader.rows["all"])} == dict(
        zip(names, "ab", strict=True)
    )


def test_a_file_name_that_ends_in_a_blank_is_still_found(tmp_path):
    draw(tmp_path / "0.png ")
    draw(tmp_path / "1.png")
    write_lines(tmp_path / "metadata.csv", [HEADER, "0.png ,a,train", "1.png,a,test"])
    assert load_dataset(str(tmp_path)).records("train")[0].path == Path(tmp_path / "0.png ")


def test_paths_may_be_relative_to_the_folder_of_their_list(tmp_path):
    for split in ("train", "test"):
        draw(tmp_path / split / "0.png")
        write_lines(tmp_path / split / "metadata.csv", ["file_name,label", "0.png,cat"])
    layout = ListLayout(train=("train/metadata.csv",), test=("test/metadata.csv",), beside=True)
    reader = read_lists(layout, tmp_path, "set")
    assert reader.records("test")[0].file_name == "test/0.png"


def test_classes_of_a_list_without_images_and_lines_for_none_are_told(tmp_path):
    aircraft(tmp_path / "fgvc_aircraft")
    told = load_dataset("fgvc_aircraft", tmp_path).reader.remarks
    assert told == ("ignored: 1 class without a training image: Yak-42",)
    cub(tmp_path / "CUB_200_2011")
    for name in ("image_class_labels.txt", "train_test_split.txt"):
        with (tmp_path / "CUB_200_2011" / name).open("a") as file:
            file.write("7 1\n")
    (tmp_path / "CUB_200_2011/train_test_split.txt").write_text("1 1\n2 0\n3 2\n4 1\n5 0\n")
    assert load_dataset("cub-200-2011", tmp_path).reader.remarks == (
        "ignored: 1 line of image_class_labels.txt for no image of images.txt: 7",
        "ignored: 1 row with split '2'",
        "ignored: 1 row without a split",
    )


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("image_class_labels.txt", "1 2", "line 7: 1 is '2' here, but '1' further up"),
        ("train_test_split.txt", "8", "line 7: '8': expected a key and a value"),
        (
            "classes.txt",
            "2 003.Crested_Auklet",
            "line 3: class '2 003.Crested_Auklet' occurs twice",
        ),
        ("classes.txt", "3 003.Laysan_Albatross", "line 3: class .* occurs twice"),
    ],
)
def test_lines_that_contradict_others_are_refused(tmp_path, file, line, named):
    cub(tmp_path / "CUB_200_2011")
    with (tmp_path / "CUB_200_2011" / file).open("a") as stored:
        stored.write(f"{line}\n")
    with pytest.raises(InputError, match=named):
        load_dataset("cub-200-2011", tmp_path)
