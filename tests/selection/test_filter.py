"""`python -m expansion.filter` on hand-made measurements, and training on what it keeps."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import parse_logs
import train_expand
from expansion.data.datasets import load_dataset
from expansion.export import __main__ as export
from expansion.images.content import content_summary, readable_records
from expansion.measures import command as evaluate
from expansion.selection import command
from expansion.store.expanded_set import Asked
from expansion.store.selection import Selection
from tests.helpers.measured_sets import (
    REAL,
    line,
    numbers,
    read_measurement,
    refusal,
    selected,
    write_measurement,
)
from tests.measures.conftest import digits, measured_digits, varied, write_set  # noqa: F401

pytestmark = pytest.mark.slow  # sets are made, learnt from and filtered


def test_a_bound_keeps_what_reaches_it_and_says_why_others_are_dropped(made, capsys):
    before = {path.name for path in made.rglob("*")}
    found = selected(made, "--at_least", "own_probability=0.85")
    assert numbers(found) == {"ant": 3, "bee": 3, "cat": 3}
    assert set(found.dropped.values()) == {"own_probability below 0.85"}
    assert found.rule == "own_probability at least 0.85"
    lost = {"own_probability below 0.85": 15}
    assert found.classes["ant"] == {"there": 18, "kept": 3, "dropped": lost}
    name, digest = next(iter(found.kept.items()))
    assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in made.rglob("*")} == before | {"selected.json"}
    table = [text.split() for text in capsys.readouterr().out.splitlines()]
    assert ["ant", "18", "3", "15"] in table and ["all", "36", "9", "27"] in table


def test_a_quantile_is_of_each_class(made):
    found = selected(made, "--at_least", "own_probability=q0.5", "--at_most=own_probability=q0.9")
    assert numbers(found) == {"ant": 7, "bee": 4, "cat": 4}


def test_an_image_without_the_figure_is_dropped_for_that(made):
    found = selected(made, "--at_least", "test_distance=0.5")
    assert found.dropped == {f"{name}/0_expand_0.png": "no test_distance" for name in REAL}


def test_figures_that_the_method_left_in_the_manifest_can_be_named(made):
    manifest = made / "manifest.0-of-1.1.jsonl"
    rows = [json.loads(text) for text in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["details"] = {"energy": number % 3}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = selected(made, "--at_most", "energy=0")
    assert numbers(found) == REAL


def test_copies_and_leaks_are_dropped_and_of_twins_the_first_stays(made):
    rows, content = read_measurement(made)
    ants = [f"ant/{i}_expand_0.png" for i in range(5)]
    content["copies"] = [{"file_name": ants[0], "of": "x", "distance": 0}]
    content["leaks"] = [{"file_name": ants[1], "of": "y", "distance": 0}]
    # 2 - 3 - 4 are linked through 4, and 0, which is dropped as a copy, is no reason to drop 1.
    pairs = [(2, 4), (3, 4), (4, 3), (0, 1)]
    content["twins"] = [{"file_name": ants[a], "of": ants[b], "distance": 0} for a, b in pairs]
    write_measurement(made, rows, content)
    found = selected(made, "--no_copies", "--no_leaks", "--no_twins")
    assert found.dropped == {
        ants[0]: "copy of a training image",
        ants[1]: "copy of a test image",
        ants[3]: "copy of another image of the set",
        ants[4]: "copy of another image of the set",
    }
    found = selected(made, "--no_copies", "--no_twins")
    assert ants[1] in found.kept


def test_the_top_of_each_class_and_ties_go_by_file_name(made):
    best = selected(made, "--top", "2", "--by", "own_probability")
    assert list(best.kept) == [f"{name}/0_expand_{k}.png" for name in REAL for k in (0, 1)]
    worst = selected(made, "--top", "1", "--by", "-own_probability")
    assert list(worst.kept) == [f"{n}/{count - 1}_expand_2.png" for n, count in REAL.items()]
    rows, content = read_measurement(made)
    write_measurement(made, [{**row, "own_probability": 0.5} for row in rows], content)
    assert list(selected(made, "--top", "2", "--by", "own_probability").kept) == list(best.kept)


def test_numbers_per_class(made, tmp_path):
    equal = selected(made, "--per_class", "equal")
    assert numbers(equal) == {"ant": 9, "bee": 9, "cat": 9}
    assert selected(made, "--per_class", "equal") == equal
    assert selected(made, "--per_class", "equal", "--seed", "1").kept != equal.kept
    # 6 + 6 = 3 + 9: as many real + generated images of each class as the smallest reaches.
    assert numbers(selected(made, "--per_class", "inverse")) == {"ant": 6, "bee": 9, "cat": 9}
    few = tmp_path / "few.json"
    few.write_text('{"bee": 2, "cat": 100}')
    found = selected(made, "--per_class", str(few), "--by", "own_probability")
    assert numbers(found) == {"ant": 18, "bee": 2, "cat": 9}
    assert list(found.kept)[18:20] == ["bee/0_expand_0.png", "bee/0_expand_1.png"]


def test_a_bound_may_be_one_over_the_number_of_classes(made):
    found = selected(made, "--at_least", "own_probability=1/C")  # 13 of 18 ants have 0.35 or more
    assert numbers(found) == {"ant": 13, "bee": 9, "cat": 9}
    assert found.rule == "own_probability at least 1/C"
    assert set(found.dropped.values()) == {"own_probability below 1/C"}


def test_a_threshold_of_zero_keeps_all(made):
    assert numbers(selected(made, "--at_least", "own_probability=0")) == {
        name: 3 * count for name, count in REAL.items()
    }


def test_a_number_of_each_class_is_drawn_among_those_that_a_bound_left(made):
    options = ("--at_least", "own_probability=0.7", "--per_class", "4")
    left = set(selected(made, *options[:2]).kept)
    found = selected(made, *options)
    assert numbers(found) == {"ant": 4, "bee": 4, "cat": 4} and set(found.kept) < left
    assert selected(made, *options, "--seed", "1").kept != found.kept
    # Six reach it: those who ask for more get six, unless they ask for a top-up.
    options = ("--at_least", "own_probability=0.7", "--per_class", "8")
    assert numbers(selected(made, *options)) == {"ant": 6, "bee": 6, "cat": 6}


def test_a_class_with_too_few_is_topped_up_by_the_best_of_the_others(made):
    options = ("--at_least", "own_probability=0.7", "--top_up", "--per_class")
    best = selected(made, "--top", "8", "--by", "own_probability")
    found = selected(made, *options, "8")
    assert found.kept == best.kept and found.rule.endswith("topped up by the figure")
    # Where enough reach it, those are drawn from; where there are no more, all are kept.
    enough = selected(made, *options, "4")
    assert enough.kept == selected(made, *options[:2], "--per_class", "4").kept
    assert numbers(selected(made, *options, "12")) == {"ant": 12, "bee": 9, "cat": 9}


def test_a_top_up_brings_back_no_copy(made):
    rows, content = read_measurement(made)
    content["copies"] = [{"file_name": "ant/0_expand_0.png", "of": "x", "distance": 0}]
    write_measurement(made, rows, content)
    options = ("--at_least", "own_probability=0.8", "--no_copies", "--top_up", "--per_class", "8")
    found = selected(made, *options)
    assert numbers(found) == {"ant": 8, "bee": 8, "cat": 8}
    assert found.dropped["ant/0_expand_0.png"] == "copy of a training image"


def test_a_class_that_cannot_be_filled_up_keeps_all_and_no_class_loses_all(made):
    """Bees reach 3 + 2 only, so the others come to one more than the 6 real ants."""
    rows, content = read_measurement(made)
    for row in rows:
        if row["class"] == "bee":
            row["own_probability"] -= 0.9 * (row["own_probability"] < 0.9)
    write_measurement(made, rows, content)
    found = selected(made, "--at_least", "own_probability=0.01", "--per_class", "inverse")
    assert numbers(found) == {"ant": 1, "bee": 2, "cat": 4}


def test_the_random_control_has_as_many_images_of_each_class(made):
    options = ("--at_least", "own_probability=0.75", "--random_control")
    found = selected(made, *options)
    control = Selection.read(made / "selected_random.json")
    assert numbers(control) == numbers(found) and control.kept != found.kept
    assert control.rule.startswith("at random") and set(control.dropped.values()) == {"not drawn"}
    selected(made, *options)
    assert Selection.read(made / "selected_random.json") == control


def test_the_order_of_the_measurement_does_not_matter(made):
    rows, content = read_measurement(made)
    options = ("--per_class", "equal", "--top", "5", "--by", "own_probability")
    found = selected(made, *options)
    write_measurement(made, rows[::-1], content)
    assert selected(made, *options) == found


def test_a_dry_run_writes_nothing(made, capsys):
    command.main(line(made, "--at_least", "own_probability=0.85", "--dry_run"))
    assert not (made / "selected.json").exists()
    assert "written" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "which images?"),
        (("--at_least", "own_probability"), "give NAME=VALUE"),
        (("--at_least", "own_probability=nan"), "give NAME=VALUE"),
        (("--at_most", "own_probability=q5"), "from q0 to q1"),
        (("--at_least", "own_probabilty=0.5"), "did you mean 'own_probability'?; known: own"),
        (("--at_least", "energy=0.5"), "unknown figure 'energy'; known: own_probability, test_"),
        (("--top", "2", "--by", "kid"), "unknown figure 'kid'"),
        (("--top", "2"), "--by"),
        (("--by", "own_probability"), "--top or --per_class"),
        (("--at_least", "own_probability=0.96"), "no image is left of class ant, bee, cat (18 own"),
        (("--at_least", "own_probability=0.5", "--output", "x.txt"), "ends in .json"),
        (("--per_class", "absent.json"), "cannot read absent.json"),
        (("--per_class", "0"), "--per_class 0: give a number from 1"),
        (("--at_least", "own_probability=1/2"), "give NAME=VALUE"),
        (("--at_least", "own_probability=0.5", "--top_up"), "give --per_class N and one"),
        (("--per_class", "3", "--top_up"), "give --per_class N and one --at_least"),
        (("--at_least", "clip_own_probability=1/C"), "without clip_own_probability; run python -m"),
        (("--top", "2", "--by", "-clip_entropy"), "--features clip"),
        (("--at_most", "entropy=1"), "without entropy; finish a run of train_original.py, then"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_ends_in_one_line_and_leaves_no_file(made, options, expected):
    assert expected in refusal(command.main, line(made, *options))
    assert not list(made.glob("*selected*"))


def test_a_file_of_classes_must_name_known_ones_with_numbers(made, tmp_path):
    path = tmp_path / "numbers.json"
    for content, expected in (
        ('{"dog": 2}', "no class is called dog"),
        ('{"ant": 0}', "class ant: give a number from 1"),
        ('["ant"]', "expected an object"),
    ):
        path.write_text(content)
        assert expected in refusal(command.main, line(made, "--per_class", str(path)))


def test_a_class_that_loses_all_is_named_with_the_reasons(made):
    rows, content = read_measurement(made)
    for row in rows:
        row["own_probability"] *= row["class"] != "bee"
    write_measurement(made, rows, content)
    message = refusal(command.main, line(made, "--at_least", "own_probability=0.1"))
    assert "no image is left of class bee (9 own_probability below 0.1)" in message


def test_a_set_that_was_not_measured_or_changed_since_is_refused_with_the_command(made):
    rows, content = read_measurement(made)
    options = line(made, "--at_least", "own_probability=0.85")
    rewritten = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(rewritten, "PNG")
    old = (made / rows[0]["file_name"]).read_bytes()
    (made / rows[0]["file_name"]).write_bytes(rewritten.getvalue())
    message = refusal(command.main, options)
    assert "1 images have changed since (ant/0_expand_0.png)" in message
    (made / rows[0]["file_name"]).write_bytes(old)
    write_measurement(made, rows[1:], content)
    assert "1 images were not measured" in refusal(command.main, options)
    (made / "evaluation.jsonl").write_text('{"file_name": "a", "own_probability": NaN}\n')
    assert "line 1: no measurement of an image (a figure is NaN)" in refusal(command.main, options)
    for odd in ('"0.9"', "true", "1e999"):
        row = f'{{"file_name": "a", "own_probability": {odd}}}'
        (made / "evaluation.jsonl").write_text(f"{row}\n")
        said = refusal(command.main, options)
        assert "line 1: no measurement of an image (own_probability is " in said
    (made / "evaluation.jsonl").unlink()
    message = refusal(command.main, options)
    zoo, data = made.parents[2] / "zoo", made.parents[1]
    asked = f"run python -m expansion.evaluate -d {zoo} --exp set_3x --data_dir {data}"
    assert message.endswith(asked) and evaluate.parse(asked.split()[4:]).exp == ("set_3x",)


def test_a_measurement_against_other_test_images_or_under_other_labels_is_refused(made):
    rows, content = read_measurement(made)
    options = line(made, "--no_leaks")
    zoo = made.parents[2] / "zoo"
    records, _ = readable_records(load_dataset(str(zoo)).records("test"), "fail")
    write_measurement(made, rows, {**content, "test_images": content_summary(records)})
    command.main(options)
    Image.new("RGB", (8, 8), "red").save(zoo / "test" / "ant" / "new.png")
    assert "against other test images than there are now" in refusal(command.main, options)
    write_measurement(made, [{**rows[0], "class": "bee"}, *rows[1:]], content)
    assert "1 images have changed since (ant/0_expand_0.png)" in refusal(command.main, options)


def test_a_set_by_another_tool_is_filtered_by_its_measurement(made):
    for path in (made / "metadata.jsonl", *made.glob("manifest*"), *made.glob("plan.json")):
        path.unlink()
    assert numbers(selected(made, "--at_least", "own_probability=0.85")) == dict.fromkeys(REAL, 3)


def test_real_images_that_were_not_expanded_count_as_real_ones(made):
    """Three of six ants were expanded; 6 + 6 = 3 + 9 images of each class are then learnt from."""
    records = load_dataset(str(made.parents[2] / "zoo")).records("train")
    names = [record.file_name for record in records]
    asked = [name for name in names if "ant" not in name or Path(name).stem in "012"]
    Asked(3, asked, {"training_images": names}).write(made)
    assert numbers(selected(made, "--per_class", "inverse")) == {"ant": 6, "bee": 9, "cat": 9}


def test_a_file_that_is_no_selection_is_not_written_over(made):
    output = ("--output", str(made / "plan.json"))
    options = line(made, "--at_least", "own_probability=0.85", *output)
    before = (made / "plan.json").read_bytes()
    assert "is no selection" in refusal(command.main, options)
    assert (made / "plan.json").read_bytes() == before


def train_line(made: Path, selection: Path, *options: str) -> list[str]:
    """A training of two steps on the set."""
    words = "--arch resnet10_tiny --image_size 8 --seeds 1 --budget steps --max_train_steps 2"
    places = ["--checkpoint_dir", str(made.parents[2] / "runs"), "--selection", str(selection)]
    return line(made, *words.split(), *places, *options)


def test_training_takes_the_kept_images_alone_and_the_table_says_so(made, capsys):
    selected(made, "--at_least", "own_probability=0.85")
    train_expand.main(train_line(made, made / "selected.json"))
    capsys.readouterr()
    root = str(made.parents[2] / "runs")
    parse_logs.main([root, "--table", "--format", "csv", "--columns", "selection"])
    table = capsys.readouterr().out
    assert "set_3x_selected," in table and "own_probability at least 0.85" in table
    # Another rule under the same name is another run.
    selected(made, "--at_least", "own_probability=0.8")
    message = refusal(train_expand.main, train_line(made, made / "selected.json"))
    assert "begun with other settings" in message and "selection" in message


def test_with_fewer_real_images_the_kept_variants_of_the_others_are_left_out(made, capsys):
    selected(made, "--at_least", "own_probability=0.5")
    options = train_line(made, made / "selected.json", "--shots", "2", "--dry_run")
    train_expand.main(options)
    out = capsys.readouterr().out
    assert "6 real + " in out and "arm: set_3x_selected\n" in out


def test_a_selection_of_another_set_or_a_part_of_one_is_refused(made, tmp_path):
    found = selected(made, "--at_least", "own_probability=0.85")
    path = tmp_path / "chosen.json"
    name = next(iter(found.kept))
    content = json.loads((made / "selected.json").read_text())
    known = {**content["kept"], **content["dropped"]}
    whole = {**content, "kept": dict.fromkeys(known, "0" * 64), "dropped": {}}
    for changed, expected in (
        ({**content, "kept": {**content["kept"], name: "0" * 64}}, "1 kept images with other"),
        ({**content, "kept": {**content["kept"], "ant/9.png": "0"}}, "1 kept images missing ("),
        ({**content, "dropped": {}}, "27 images that it does not know"),
        (whole, "36 kept images with other content"),
        ({**content, "kept": {}}, "keeps no image"),
        ({k: v for k, v in content.items() if k != "dropped"}, "dropped is missing or odd"),
        ({**content, "format": 2}, "no whole selection of this version"),
    ):  # fmt: skip
        path.write_text(json.dumps(changed))
        message = refusal(train_expand.main, train_line(made, path))
        assert expected in message and str(path) in message
    path.write_text((made / "selected.json").read_text()[:-300])
    assert "as JSON" in refusal(train_expand.main, train_line(made, path))
    assert not (tmp_path / "runs").exists()


def test_a_kept_image_that_is_gone_is_refused_also_where_the_set_may_be_incomplete(made):
    found = selected(made, "--at_least", "own_probability=0.85")
    (made / next(iter(found.kept))).unlink()
    options = train_line(made, made / "selected.json", "--on_incomplete", "use")
    assert "1 kept images missing" in refusal(train_expand.main, options)


def test_an_export_takes_the_kept_images_alone(made, tmp_path):
    selected(made, "--at_least", "own_probability=0.85")
    zoo, target = str(made.parents[2] / "zoo"), tmp_path / "merged"
    options = ["-d", zoo, "--merge", str(target), "--selection", str(made / "selected.json")]
    export.main([str(made), *options])
    assert len(list((target / "train").rglob("*_expand_*.png"))) == 9


def test_wrong_images_are_found_by_their_own_probability(measured_digits, digits):  # noqa: F811
    """Three images in ten show another digit than their label says."""
    everything = digits.records("train")
    records = [r for i, r in enumerate(everything) if i % 20 < 5]
    wrong = {r.file_name for i, r in enumerate(records) if i % 10 in (0, 4, 8)}
    other = dict(zip([r.file_name for r in records], records[25:] + records[:25], strict=True))

    def draw(record, number):
        return varied(other[record.file_name] if record.file_name in wrong else record, number)

    folder = measured_digits / "data" / "digits_expansion" / "three_in_ten_wrong"
    write_set(folder, records, 2, draw)
    places = ["-d", "digits", "--data_dir", str(measured_digits / "data"), "--exp", folder.name]
    evaluate.main([*places, "--checkpoint_dir", str(measured_digits / "checkpoint")])
    command.main([*places, "--at_least", "own_probability=0.5", "--random_control"])
    found = Selection.read(folder / "selected.json")
    rows = [json.loads(text) for text in (folder / "metadata.jsonl").read_text().splitlines()]
    is_wrong = {row["file_name"]: row["source"] in wrong for row in rows}
    kept_wrong = sum(is_wrong[name] for name in found.kept) / len(found.kept)
    dropped_wrong = sum(is_wrong[name] for name in found.dropped) / len(found.dropped)
    assert sum(is_wrong.values()) / len(is_wrong) == pytest.approx(0.3, abs=0.02)
    assert kept_wrong < 0.05 and dropped_wrong > 0.7
    shutil.rmtree(folder)
