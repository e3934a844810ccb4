"""Names as people write them, in prompts files, YAML files, stored splits and subsets."""

from __future__ import annotations

import json
import unicodedata
from types import SimpleNamespace

import pytest

from expansion.common.errors import InputError
from expansion.common.texts import BLANKS, NameIndex, class_text, keyed_by, plain, read_json
from expansion.data.datasets import DatasetConfig, _prompt_names, choose_subset, load_dataset
from expansion.data.naming import look_alikes
from expansion.data.prompts import PromptScope, read_prompts
from expansion.data.readers.split_folders import split_of
from tests.helpers.stand_ins import draw, folders

COMPOSED = "caf\u00e9"
APART = unicodedata.normalize("NFD", COMPOSED)
BOTH = ((COMPOSED, APART), (APART, COMPOSED))


@pytest.mark.parametrize("sign", [" ", "\t", "\u00a0", "\u200b", "\ufeff", "\u2007", "\u200e"])
def test_every_blank_around_a_name_is_stripped(sign):
    assert plain(f"{sign}a{sign}b{sign}{sign}") == f"a{sign}b" and sign in BLANKS


def test_a_long_run_of_blanks_is_stripped_in_a_moment():
    assert plain("a" + " \u200b" * 200_000 + "b")[-1] == "b"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), ("1.0", "1"), ("-0.0", "0"), (-3.0, "-3"), ("1.5", "1.5"), (1.5, "1.5"),
     ("01.0", "01.0"), ("1.0.0", "1.0.0"), ("None", "None"), ("NA", "NA"), ("True", "True")],
)  # fmt: skip
def test_a_class_has_one_text(value, text):
    assert class_text("here", value) == text
    assert class_text("here", class_text("here", value)) == text


@pytest.mark.parametrize("value", [None, "", " ", "nan", "NaN", "null", float("nan"), True, [1]])
def test_no_value_is_no_class(value):
    with pytest.raises(InputError, match="^a.csv, line 3: the class is"):
        class_text("a.csv, line 3", value)


@pytest.mark.parametrize(
    "group",
    [
        ("cat", "Cat", "CAT"),
        ("black cat", "black  cat", "black_cat", "black\u00a0cat", "Black\u2003Cat"),
        (COMPOSED, APART),
        ("1", "001", "\uff11"),
        ("0", "00"),
        ("c\u200bat", "cat"),
    ],
)
def test_names_that_look_alike_are_one_group(group):
    assert look_alikes(["dog", *group, "cow"]) == [group]


def test_names_that_differ_to_the_eye_are_no_group():
    names = ["1", "-1", "10", "1.5", "cat", "cats", "T-shirt", "F/A-18", "F-18", "707-320", "C++"]
    assert look_alikes([*names, *names]) == []


@pytest.mark.parametrize(
    ("word", "split"),
    [("Train", "train"), ("TRAINING", "train"), (" valid ", "val"), ("Validation", "val"),
     ("Testing", "test"), ("dev", "val"), ("holdout", None), ("", None), ("trainer", None)],
)  # fmt: skip
def test_words_of_splits(word, split):
    assert split_of(word) == split


def test_a_name_is_found_as_it_is_before_its_other_forms():
    index = NameIndex([COMPOSED, APART, " dog"])
    assert [index.find(name) for name in (COMPOSED, APART, "dog", "cow")] == [
        *(COMPOSED, APART, " dog"),
        None,
    ]
    assert index.find(f"{COMPOSED} ") is None  # which of the two is not known


@pytest.mark.parametrize(("given", "there"), BOTH)
def test_keys_of_class_names_are_found_in_any_form(given, there):
    found = keyed_by([there, "1"], {f" {given}": "a", 1: "b", "cow": "c"}, "set")
    assert found == {there: "a", "1": "b", "cow": "c"}
    with pytest.raises(InputError, match="set: '1' occurs twice"):
        keyed_by(["1"], {1: "a", "1 ": "b"}, "set")


def prompt_names(classes, names, spoken=None):
    reader = SimpleNamespace(class_names=classes, spoken_names=spoken or {})
    return _prompt_names("set", DatasetConfig(class_names=names), reader)


@pytest.mark.parametrize(("given", "there"), BOTH)
def test_class_names_of_a_yaml_file_name_classes_in_any_form(given, there):
    assert prompt_names((there, "1"), {f"{given} ": " coffee\u00a0", 1: "one"}) == ("coffee", "one")
    assert prompt_names((there,), {given: "b"}, {given: "a"}) == ("b",)
    with pytest.raises(InputError, match="class_names: the name of 1 is empty"):
        prompt_names((there, "1"), {"1": " "})


@pytest.mark.parametrize(("given", "there"), BOTH)
def test_a_file_of_class_names_names_folders_in_any_form(tmp_path, given, there):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {there: 1, "dog": 1})
    (tmp_path / "names.json").write_text(json.dumps({f"{given} ": "coffee house"}))
    names = read_json(tmp_path / "names.json", dict)
    classes = load_dataset(str(tmp_path / "set")).class_names
    assert prompt_names(classes, None, names) == ("coffee house", "dog")
    (tmp_path / "names.json").write_text('{"a": "x", "b": "y", "a": "z"}')
    with pytest.raises(InputError, match="names.json as JSON: the key 'a' occurs twice"):
        read_json(tmp_path / "names.json", dict)


@pytest.mark.parametrize(("given", "there"), BOTH)
def test_prompts_go_to_classes_and_images_in_any_form(tmp_path, given, there):
    name = f"train/{there}/{there}.png"
    scope = PromptScope((there,), ("coffee",), {name: 0}, [name])
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({f" {given}": ["a coffee\u00a0"]}))
    assert read_prompts(path, scope, "image", 0).by_label == [("a coffee",)]
    for written in (f"train/{given}/{given}.png", f"{given}/{given}.png "):
        path.write_text(json.dumps({"file_name": written, "text": "a coffee"}))
        assert read_prompts(path, scope, "image", 0).by_file == {name: ["a coffee"]}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"file_name": "1.png", "text": "a cat"}', "name of several images: '1.png'"),
        ('{"file_name": "", "text": "a cat"}', "no such training image: ''"),
        ('{"file_name": "3.png", "text": "a cat"}', "no such training image: '3.png'"),
        ('{"file_name": "cat/1.png", "text": "a", "text": "b"}', "invalid JSON in line: 1"),
    ],
)
def test_a_prompt_for_no_image_or_for_several_is_refused(tmp_path, line, named):
    names = {"cat/1.png": 0, "dog/1.png": 1, "dog/2.png": 1, "0.png": 1}
    scope = PromptScope(("cat", "dog"), ("cat", "dog"), names, [])
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(InputError, match=named):
        read_prompts(path, scope, "image", 0)
    path.write_text('{"file_name": "2.png", "text": "a dog"}\n{"file_name": "0.png", "text": "b"}')
    assert read_prompts(path, scope, "image", 0).by_file == {"dog/2.png": ["a dog"], "0.png": ["b"]}


@pytest.mark.parametrize(("given", "there"), BOTH)
def test_a_stored_split_and_a_subset_are_followed_in_any_form(tmp_path, given, there):
    root = tmp_path / "set"
    folders(root, {there: 4, "dog": 4})
    before = load_dataset(str(root), test_fraction=0.5)
    test = before.records("test")
    (stored,) = root.glob("split-*.json")
    lists = json.loads(stored.read_text())
    assert any(there in name for name in lists["test"])
    texts = {s: [name.replace(there, given) for name in names] for s, names in lists.items()}
    stored.write_text(json.dumps(texts))
    assert load_dataset(str(root), test_fraction=0.5).records("test") == test
    subset = tmp_path / "subset.json"
    subset.write_text(json.dumps([r.file_name.replace(there, given) for r in test]))
    assert choose_subset(test, None, 0, str(subset)) == test


def test_a_stored_split_that_lists_an_image_in_both_forms_for_both_is_refused(tmp_path):
    root = tmp_path / "set"
    folders(root, {"dog": 2})
    draw(root / "dog" / f"{APART}.png")
    load_dataset(str(root), test_fraction=0.4).records("test")
    (stored,) = root.glob("split-*.json")
    names = [f"dog/image_000{i}.jpg" for i in (0, 1)]
    lists = {"train": [names[0], f"dog/{APART}.png"], "test": [names[1], f"dog/{COMPOSED}.png"]}
    stored.write_text(json.dumps(lists))
    with pytest.raises(InputError, match="in both splits"):
        load_dataset(str(root), test_fraction=0.4).records("test")
