"""Prompts of a run: which one an image gets, what a file may hold, and expand.py with one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

import expand
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.data.prompts import (
    Prompts,
    PromptScope,
    names_class,
    overlong_warning,
    read_prompts,
    template_prompts,
)
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.images.records import ImageRecord
from tests.helpers.prompt_files import DIGITS, write

SCOPE = PromptScope(
    class_names=("ant", "yin_yang"),
    prompt_names=("garden ant", "yin yang"),
    labels={"train/ant/1.png": 0, "train/ant/2.png": 0, "train/yin_yang/1.png": 1},
    wanted=("train/ant/1.png", "train/yin_yang/1.png"),
)


def draw(seed: int, file_name: str, count: int) -> int:
    """Number of the candidate that an image begins with, written out once more."""
    digest = hashlib.sha256(f"prompt\x1f{seed}\x1f{file_name}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 1) % count


def lines(*rows: tuple[str, object]) -> str:
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)


# The draw


def test_variants_share_the_prompt_that_is_drawn_for_their_image():
    prompts = Prompts([("a", "b", "c")], per="image", seed=7)
    for name in ("train/ant/1.png", "train/ant/2.png", "train/ant/3.png"):
        expected = "abc"[draw(7, name, 3)]
        assert [prompts.prompt_of(name, 0, variant) for variant in range(5)] == [expected] * 5


def test_variants_take_the_prompts_in_turn_from_the_drawn_one():
    prompts = Prompts([("x",), ("a", "b", "c")], per="variant", seed=7)
    for name in ("train/ant/1.png", "train/ant/2.png", "train/ant/3.png"):
        first = draw(7, name, 3)
        expected = [("abc" * 3)[first + variant] for variant in range(6)]
        assert [prompts.prompt_of(name, 1, variant) for variant in range(6)] == expected
        assert len(set(expected[:3])) == 3


def test_images_and_seeds_draw_evenly():
    names = [f"train/ant/{i}.png" for i in range(400)]
    drawn = [[Prompts(["abcd"], seed=s).prompt_of(n, 0, 0) for n in names] for s in (1, 2)]
    assert all(70 < count < 130 for count in Counter(drawn[0]).values())
    assert 60 < sum(a == b for a, b in zip(*drawn, strict=True)) < 140


def test_an_image_with_own_prompts_draws_from_them():
    prompts = Prompts([], {"train/ant/1.png": ["a", "b"], "train/ant/2.png": ["c"]}, seed=3)
    assert prompts.prompt_of("train/ant/1.png", 0, 0) == "ab"[draw(3, "train/ant/1.png", 2)]
    assert prompts.prompt_of("train/ant/2.png", 0, 4) == "c"


def test_the_fingerprint_is_that_of_the_content():
    base = Prompts([("a", "b")], per="image", seed=1).fingerprint()
    assert Prompts([("a", "b")], per="image", seed=2).fingerprint() == base  # is noted by itself
    others = [
        Prompts([("a", "b")], per="variant"),
        Prompts([("b", "a")]),
        Prompts([("a",), ("b",)]),
        Prompts([], {"f": ["a", "b"]}),
        Prompts([], {"f": ["a", "c"]}),
    ]
    assert len({base, *(p.fingerprint() for p in others)}) == 6
    one = template_prompts("a {}", ["cat"])
    assert one.fingerprint() == Prompts([["a cat"]], per="variant").fingerprint()


# Files


def test_classes_go_by_class_name_or_prompt_name(tmp_path):
    content = {"yin yang": [" a yin yang ", "yin yangs"], "ant": ["garden ant"]}
    prompts = read_prompts(write(tmp_path / "p.json", content), SCOPE, "variant", 5)
    assert prompts == Prompts([("garden ant",), ("a yin yang", "yin yangs")], {}, "variant", 5)


def test_lines_go_by_path_below_the_dataset_or_the_split_folder(tmp_path):
    text = lines(
        ("ant/1.png", "one garden ant"),
        ("train/yin_yang/1.png", "a yin-yang"),
        ("train/ant/1.png", "two garden ants SEPARATOR of lines"),
    ).replace("SEPARATOR", "\u2028")  # no line end in JSON
    prompts = read_prompts(write(tmp_path / "metadata.jsonl", f"{text}\n"), SCOPE, "image", 5)
    assert prompts.by_file == {
        "train/ant/1.png": ["one garden ant", "two garden ants \u2028 of lines"],
        "train/yin_yang/1.png": ["a yin-yang"],
    }
    assert prompts.by_label == ()


def test_one_line_is_enough_for_one_image(tmp_path):
    scope = PromptScope(("ant",), ("ant",), {"train/ant/1.png": 0}, ["train/ant/1.png"])
    prompts = read_prompts(write(tmp_path / "p", lines(("ant/1.png", "ant"))), scope, "image", 0)
    assert prompts.by_file == {"train/ant/1.png": ["ant"]}


FINE = ("ant/1.png", "garden ant")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["invalid JSON in line 1", "{class: [prompts]}"]),
        ('{"ant": ["garden ant"],\n "yin_yang": [oops]}', ["invalid JSON in line 2"]),
        (["garden ant"], ["not an object"]),
        ({"ant": ["garden ant"]}, ["no prompts for class: 'yin_yang';"]),
        ({"ant": ["x"], "yin_yang": []}, ["no prompts for class: 'yin_yang';"]),
        (
            {"ant": "x", "yin_yang": [3], "elk": ["x"]},
            ["no such class: 'elk';", "for class: 'ant', 'yin_yang';"],
        ),
        ({"ant": ["x", " "], "yin_yang": ["x"]}, ["empty or non-string", "for class: 'ant';"]),
        ({"ant": ["x"], "garden ant": ["x"], "yin_yang": ["x"]}, ["twice: 'garden ant';"]),
        ('{"ant": ["x"], "ant": ["y"], "yin_yang": ["x"]}', ["class given twice: 'ant';"]),
        (
            {**{f"elk{i}": ["x"] for i in range(7)}, "ant": ["x"], "yin_yang": ["x"]},
            ["no such class: 'elk0', 'elk1', 'elk2', 'elk3', 'elk4' and 2 more;"],
        ),
        (lines(FINE, FINE), ["no line for the real image: 'train/yin_yang/1.png';"]),
        (
            lines(FINE, ("ant/9.png", "x"), ("yin_yang/1.png", "x"), ("test/ant/1.png", "x")),
            ["no such training image: 'ant/9.png', 'test/ant/1.png';"],
        ),
        (
            lines(FINE, ("yin_yang/1.png", "x"), FINE) + 'oops\n[1]\n\n{"text": "x"}\n',
            ["invalid JSON in line: 4, 5;", "no file_name in line: 7;"],
        ),
        (
            lines(FINE, ("yin_yang/1.png", "x"), ("ant/1.png", ""), ("ant/1.png", 3)),
            ["empty or non-string text in line: 3, 4;"],
        ),
        ('{"text": "x"}\n' + lines(FINE), ["no file_name in line: 1;"]),
    ],
)
def test_all_that_is_wrong_in_a_file_is_named_in_one_line(content, words, tmp_path):
    path = write(tmp_path / "prompts.json", content)
    with pytest.raises(InputError) as error:
        read_prompts(path, SCOPE, "image", 0)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_or_binary_file_is_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    for name in ("binary", "nowhere.json"):
        with pytest.raises(InputError, match=f"cannot read the prompts file .*{name}"):
            read_prompts(tmp_path / name, SCOPE, "image", 0)


@pytest.mark.parametrize(
    ("prompt", "name", "expected"),
    [
        ("Two Siamese-Cats on a sofa", "siamese cat", True),
        ("a yin yang sign", "yin_yang", True),
        ("a bobcat", "cat", False),
        ("a dog", "cat", False),
        ("a C++ (book)", "c++ (book)", True),
    ],
)
def test_a_prompt_names_its_class_or_not(prompt, name, expected):
    assert names_class(prompt, name) is expected


def test_prompts_that_do_not_name_their_class_are_counted_with_one_example(tmp_path, caplog):
    content = {"ant": ["garden ants", "an insect", "a bug"], "yin_yang": ["a Yin-Yang"]}
    read_prompts(write(tmp_path / "p.json", content), SCOPE, "image", 0)
    assert (
        "2 of 4 prompts do not name their class, such as 'an insect' of 'garden ant'" in caplog.text
    )
    caplog.clear()
    text = lines(FINE, ("yin_yang/1.png", "a sign"))
    read_prompts(write(tmp_path / "p.jsonl", text), SCOPE, "image", 0)
    assert "1 of 2 prompts" in caplog.text and "'a sign' of 'yin yang'" in caplog.text


def test_prompts_beyond_the_window_are_counted(pipeline):
    fits = "zero " * 75  # with the start and end tokens 77
    assert overlong_warning([fits, "zero"], pipeline.tokenizer) is None
    texts = [fits, "zero", "one " * 76, "one " * 76, "two " * 98]
    warning = overlong_warning(texts, pipeline.tokenizer)
    assert warning.startswith("2 of 4 prompts are longer than the 77 tokens")
    assert warning.endswith(f"the longest has 100: {'two ' * 98!r}")


# expand.py


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("per", ["image", "variant"])
def test_every_shard_and_batch_uses_and_records_the_drawn_prompts(
    tmp_path, arguments, per, monkeypatch
):
    sample, used = Img2ImgSampler.sample, {}

    def noting(self, batch, generators):
        for index, prompt, variant in zip(
            batch.source_index.tolist(), batch.prompts, (0, 1) * 4, strict=False
        ):
            used[batch.sources[index], variant] = prompt
        return sample(self, batch, generators)

    monkeypatch.setattr(Img2ImgSampler, "sample", noting)
    runs = {"whole": [()], "single": [("--batch_size", 2)]}
    runs["sharded"] = [("--split", split, "--total_split", 2) for split in (1, 0)]
    for name, options in runs.items():
        for option in options:
            expand.main(arguments(tmp_path / name, "--prompt_per", per, *option))
        rows = rows_of(tmp_path / name)
        for row in rows:
            step = row["variant"] if per == "variant" else 0
            number = (draw(42, row["source"], 3) + step) % 3
            assert row["prompt"] == f"{DIGITS[row['label']]} {number}"
            assert used[row["source"], row["variant"]] == row["prompt"]
        assert len(rows) == len(used) == 20
        assert len({row["prompt"] for row in rows}) == (20 if per == "variant" else 10)
        used.clear()
    with Image.open(tmp_path / "whole" / rows[0]["file_name"]) as image:
        assert image.text["prompt"] == rows[0]["prompt"]
    files = [sorted((tmp_path / name).rglob("*.png")) for name in ("whole", "sharded")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


@pytest.mark.slow
def test_a_set_goes_on_with_the_same_prompts_only(tmp_path, arguments, digit_prompts):
    out = tmp_path / "out"
    expand.main(arguments(out, "--num_images_per_prompt", 1))
    assert all("prompt" not in row for row in json.loads((out / "classes.json").read_text()))
    first = {row["file_name"]: row for row in rows_of(out)}
    moved = digit_prompts.rename(tmp_path / "moved.json")
    expand.main(arguments(out, "--prompts_file", moved))
    assert (
        len(rows_of(out)) == 20
        and first.items() <= {r["file_name"]: r for r in rows_of(out)}.items()
    )
    content = json.loads(moved.read_text())
    content["9"][2] = "another nine"
    changed = write(tmp_path / "changed.json", content)
    for options in (
        ("--prompts_file", changed),
        ("--prompts_file", moved, "--prompt_per", "variant"),
    ):
        with pytest.raises(InputError, match="other settings.*prompts: "):
            expand.main(arguments(out, *options))


def test_only_the_real_images_of_the_run_need_a_line(tmp_path, arguments, digits_dir, capsys):
    records = load_dataset("digits", digits_dir).records("train")
    used = few_shot(records, 1)
    path = tmp_path / "metadata.jsonl"

    def plan(chosen: Sequence[ImageRecord], *options: object) -> str:
        write(path, lines(*((r.file_name, f"digit {r.class_name}") for r in chosen)))
        out = tmp_path / "out"
        expand.main(arguments(out, "--prompts_file", path, *options, "--dry_run"))
        return capsys.readouterr().out

    for enough in (used, records):
        assert f"prompt of {used[0].file_name}: digit 0\n" in plan(enough)
    with pytest.raises(InputError, match=f"no line for the real image: '{used[0].file_name}';"):
        plan(used[1:])
    with pytest.raises(InputError, match="no line for the real image: .* and 5 more;"):
        plan(used, "--shots", 2)


def test_a_prompt_beyond_the_window_is_announced_once(tmp_path, arguments, digit_prompts, caplog):
    content = {
        name: ["one " * 90] if name == "1" else texts
        for name, texts in json.loads(digit_prompts.read_text()).items()
    }
    write(digit_prompts, content)
    expand.main(arguments(tmp_path / "out", "--num_images_per_prompt", 1))
    (record,) = [r for r in caplog.records if "longer than the 77 tokens" in r.getMessage()]
    assert record.levelno == logging.WARNING and record.getMessage().startswith("1 of 10 prompts")


def test_file_and_template_together_are_refused(tmp_path, arguments):
    with pytest.raises(InputError, match="prompts_file .*prompt_template 'a {}'.*only one"):
        expand.main(arguments(tmp_path / "out", "--prompt_template", "a {}"))


# Numbered lists


CATS = PromptScope(
    class_names=("Bengal", "american_bulldog", "bulldog"),
    prompt_names=("Bengal", "american bulldog", "bulldog"),
    labels={"train/1.png": 0, "train/2.png": 1, "train/3.png": 2},
    wanted=("train/1.png",),
)
LISTS = """1. An American Bulldog asleep.
2. A proud American bulldog.
2. An american bulldog again, under a number that is there twice.
5. An American Bulldog, after two that are missing.

1. A Bengal cat on a shelf.
2. Two Bengals.
3. A Bengal kitten.
4. A cat of which nothing more is said.
1) A bulldog.
"""


def test_numbered_lists_are_of_the_classes_that_they_name_in_any_order(tmp_path, caplog):
    prompts = read_prompts(write(tmp_path / "gpt.txt", LISTS), CATS, "image", 3)
    assert [len(texts) for texts in prompts.by_label] == [4, 4, 1]
    assert prompts.by_label[0][0] == "A Bengal cat on a shelf."
    assert prompts.by_label[1][3] == "An American Bulldog, after two that are missing."
    assert prompts.by_label[2] == ("A bulldog.",)
    assert "1 of 9 prompts do not name their class" in caplog.text
    assert prompts.prompt_of("train/1.png", 0, 0) == prompts.by_label[0][draw(3, "train/1.png", 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("1) A bulldog.\n", ""),
            "no list for class: 'bulldog'; expected a numbered list for each",
        ),
        (("1) A bulldog.", "Bulldogs:\n1) A bulldog."), "no '<number>. <prompt>' in line: 10"),
        (("1) A bulldog.", "1) A poodle."), "lists of no class: that from line 10, 'A poodle.'"),
        (
            ("1) A bulldog.", "1) A bulldog.\n1) A bulldog here."),
            "second lists of a class: that from line 11, 'A bulldog here.'",
        ),
        (("3. A Bengal kitten", "3. A bulldog"), "lists of no class: that from line 6"),
    ],
)
def test_other_lists_are_refused_with_what_was_expected(tmp_path, change, message):
    with pytest.raises(InputError) as error:
        read_prompts(write(tmp_path / "gpt.txt", LISTS.replace(*change)), CATS, "image", 3)
    assert message in str(error.value)
