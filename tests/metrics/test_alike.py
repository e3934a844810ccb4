"""Notes on rows of unlike runs, on repeated seeds, and on arms of another recipe."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

import parse_logs
from expansion.classifier.recipe import Recipe
from expansion.common.config import deciding
from expansion.common.errors import InputError
from expansion.metrics.alike import IF_ABSENT, OF_THE_ARM
from tests.helpers.run_folders import notes_of, row_of

RECIPE = deciding(Recipe(image_size=16, resize_size=36, batch_size=8))


@pytest.fixture
def write_seeds(write_arm):
    """Function that writes the runs of an arm with one dictionary of changes for each seed."""

    def write(arm: str, *changes: dict) -> None:
        for seed, change in enumerate(changes, start=1):
            write_arm(arm, [60.0 + seed], seed=seed, **change)

    return write


@pytest.fixture
def original_folder(tmp_path):
    return tmp_path / "digits" / "resnet10_tiny_unpretrained_lr0.1"


def test_a_row_of_runs_of_different_settings_names_them(write_seeds, table):
    usual = {"epochs": 2, "weight_decay": 0.0001, "steps": 20}
    write_seeds(
        "Original", usual, {**usual, "epochs": 3, "steps": 30}, {**usual, "weight_decay": 0.1}
    )
    write_seeds("gen_10x", usual, usual, usual)
    note, _ = notes_of(table())
    assert note.startswith(
        "note: Original averages runs that differ in epochs (2, 3), weight_decay (0.0001, 0.1): "
    )
    assert row_of(table(), "Original").endswith(" 3")


def test_test_images_that_were_trained_on_are_noted(write_seeds, table):
    write_seeds("Original", {"num_test_learnt": 3}, {"num_test_learnt": 2})
    (note,) = notes_of(table())
    assert note.startswith("note: 3 of the test images are training images too")


def test_arms_whose_runs_differ_in_the_same_share_a_note(write_seeds, table):
    for arm in ("Original", "gen_10x"):
        write_seeds(arm, {"momentum": 0.9}, {"momentum": 0.5})
    (note,) = notes_of(table())
    assert note.startswith("note: Original, gen_10x average runs that differ in momentum (0.5, 0.9")


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"eval_steps": 50}, "eval_steps (50, none)"),
        ({}, {"zero_shot_head": True}, "zero_shot_head (False, True)"),
        (
            {"learning": {"tau": 1}},
            {"learning": {"tau": 1, "stage1_epochs": 5}},
            "stage1_epochs (5",
        ),
        ({"expanded_set": {"K": 1}}, {"expanded_set": {"K": 3}}, "K (1, 3)"),
        ({"arm": "Original"}, {"arm": "mine"}, "arm (Original, mine)"),
        ({}, {"steps": 600}, "steps (300, 600)"),
    ],
)
def test_settings_that_are_off_and_those_in_groups_count(before, after, named, write_run, table):
    usual = {"last_accuracy": 60.0, "best_accuracy": 60.0, "steps": 300, "dataset": "digits"}
    for seed, change in enumerate((before, after), start=1):
        write_run(f"a/seed{seed}", {**usual, "seed": seed, **change})
    (note,) = notes_of(table())
    assert f"runs that differ in {named}" in note


def test_runs_may_differ_in_what_was_measured(write_seeds, tmp_path, original_folder, table):
    measured = [
        {"seconds": 1.0 + k, "acceptance_rate": 50.0 + k, "label_agreement": 90.0 + k, "tau": 1}
        for k in range(2)
    ]
    write_seeds("Original", *measured)
    (note,) = notes_of(table())
    assert "differ in label_agreement (90, 91): " in note  # nothing says that it is no setting
    for folder in original_folder.iterdir():
        (folder / "options.yaml").write_text("arm: Original\ntau: 1\n")
    assert notes_of(table()) == []


def test_other_images_of_one_draw_get_a_note(write_seeds, table):
    write_seeds("Original", {"subset_seed": 4}, {"subset_seed": 4, "training_images": "20 other"})
    (note,) = notes_of(table())
    assert "Original averages runs that differ in training_images" in note


def drawn(seed: int, **changes) -> dict:
    """Facts of a run whose real images, set and guide were drawn by `seed`."""
    return {
        "subset_seed": seed,
        "training_images": f"20 images, content {seed}",
        "generated": f"200 images, content {seed}",
        "expanded_set": {"folder": f"draw{seed}", "guide": f"sha256:{seed}", "strength": 0.5},
        **changes,
    }


def test_images_drawn_for_each_seed_get_no_note(write_seeds, table):
    for arm in ("Original", "gen_10x"):
        write_seeds(arm, drawn(1), drawn(2), drawn(3))
    assert notes_of(table()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"expanded_set": {"guide": "sha256:1", "strength": 0.8}}, "strength (0.5, 0.8)"),
        ({"num_real": 40}, "num_real (20, 40)"),
        ({"num_generated": 400}, "num_generated (200, 400)"),
        ({"rotation": 0.0}, "rotation (0, 15)"),
    ],
)
def test_draws_of_different_settings_get_a_note(change, named, write_seeds, table):
    write_seeds("gen_10x", drawn(1, rotation=15.0), drawn(2, **{"rotation": 15.0, **change}))
    (note,) = notes_of(table())
    assert f"runs that differ in {named}: " in note


def test_selections_may_keep_other_numbers_of_each_draw(write_seeds, table):
    write_seeds("gen_10x", *(drawn(k, selection="half", num_generated=90 + k) for k in (1, 2)))
    assert notes_of(table()) == []


def test_older_runs_tell_their_draw_by_their_command(write_seeds, original_folder, table):
    write_seeds("Original", {"training_images": "20 a"}, {"training_images": "20 b"})
    assert len(notes_of(table())) == 1
    for seed in (1, 2):
        command = f"python train_original.py --shots 2 --subset_seed {seed} --seeds {seed}"
        path = original_folder / f"seed{seed}" / "options.yaml"
        path.write_text(f"training_images: x\nmade_with:\n  command: {command}\n")
    assert notes_of(table()) == []


def test_a_renamed_run_is_not_averaged_with_the_one_in_its_place(
    write_arm, original_folder, table, tmp_path, capsys
):
    write_arm("Original", [10.0])
    (original_folder / "seed1").rename(original_folder / "seed1_old")
    write_arm("Original", [70.0, 74.0])
    write_arm("gen_10x", [80.0, 90.0])
    lines = table()
    assert row_of(lines, "Original") == "Original 20 + 0 300 72.00 +- 2.00 73.50 +- 2.50 15 2"
    old = original_folder / "seed1_old"
    (note,) = notes_of(lines)
    assert note.startswith(f"note: Original leaves out {old} (seed 1): ")
    assert note in table("--matrix", "dataset", "arm")
    parse_logs.main([str(tmp_path), "--table", "--matrix", "dataset", "arm", "--format", "csv"])
    assert note in capsys.readouterr().err
    parse_logs.main([str(original_folder), "--multi"])
    out, err = capsys.readouterr()
    assert out.endswith("Average  of 2 files is 73.50 +- 2.50\n")
    assert err.startswith(f"note: the average leaves out {old} (seed 1): ")


def test_a_renamed_run_alone_is_the_run_of_its_seed(write_arm, original_folder, table):
    write_arm("Original", [70.0, 74.0])
    (original_folder / "seed1").rename(original_folder / "first")
    lines = table()
    assert row_of(lines, "Original").endswith(" 2") and notes_of(lines) == []


@pytest.mark.parametrize("form", ["--table", "--multi"])
def test_runs_of_one_seed_under_other_names_are_refused(form, write_arm, original_folder):
    write_arm("Original", [70.0])
    shutil.copytree(original_folder / "seed1", original_folder / "b")
    (original_folder / "seed1").rename(original_folder / "a")
    with pytest.raises(InputError, match="a and .*b hold runs of the same seed, 1; rename"):
        parse_logs.main([str(original_folder), form])


def test_an_average_of_unlike_runs_says_so(write_seeds, original_folder, capsys):
    write_seeds("Original", {"epochs": 2}, {"epochs": 3})
    parse_logs.main([str(original_folder), "--multi"])
    out, err = capsys.readouterr()
    assert out.endswith("Average  of 2 files is 62.50 +- 0.50\n")
    assert "averages runs that differ in epochs (2, 3): " in err


def test_a_gain_over_an_original_of_another_recipe_gets_a_note(write_arm, table):
    write_arm("Original", [70.0], **RECIPE)
    other = {"image_size": 32, "batch_size": 4, "rotation": 0.0, "weight_decay": 0.01}
    write_arm("gen_10x", [80.0], **{**RECIPE, **other, "eval_steps": 5, "steps": 600})
    (note,) = notes_of(table())
    names, meaning = note.split(". ", 1)
    assert names.startswith("note: gen_10x differs from Original in steps, ")
    assert set(names.split(" in ")[1].split(", ")) == {*other, "eval_steps", "steps"}
    assert meaning == (
        "Arms are only comparable at equal steps. With other settings, a gain is of these too."
    )


def test_what_an_arm_is_about_gets_no_note(write_arm, table):
    write_arm("Original", [70.0], **RECIPE)
    about = {"augment": "randaugment", "randaugment_magnitude": 5, "crop": "random_resized"}
    own = {"labels": "amst", "label_noise": 0.1, "real_share": 0.25, "max_variants": 3}
    write_arm("gen_3x_amst", [80.0], **{**RECIPE, **about, **own, "learning": {"ema_decay": 0.9}})
    equal_steps = {"epochs": 5, "eval_steps": None}
    write_arm("gen_5x", [80.0], **{**RECIPE, **equal_steps})
    assert notes_of(table()) == []


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        ("gen_weight_decay0.01", {"weight_decay": 0.01}),
        ("gen_rotation0_more", {"rotation": 0.0}),
        ("gen_no_nesterov", {"nesterov": False}),
        ("gen_horizontal-flip_no-nesterov", {"nesterov": False}),
    ],
)
def test_settings_in_the_name_of_an_arm_get_no_note(arm, change, write_arm, table):
    write_arm("Original", [70.0], **RECIPE)
    write_arm(arm, [80.0], **{**RECIPE, **change})
    assert notes_of(table()) == []


def test_without_an_original_settings_of_arms_are_not_compared(write_arm, table):
    write_arm("gen", [70.0], **RECIPE)
    write_arm("gen_b", [80.0], **{**RECIPE, "rotation": 0.0})
    assert notes_of(table()) == []


def test_another_value_than_the_one_in_the_name_gets_a_note(write_arm, table):
    write_arm("Original", [70.0], **RECIPE)
    write_arm("gen_weight_decay0.01", [80.0], **{**RECIPE, "weight_decay": 0.011})
    assert len(notes_of(table())) == 1


def test_the_settings_that_a_run_may_lack_are_those_of_the_recipe():
    written = deciding(Recipe())
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    absent = {
        name
        for name, field in fields.items()
        if field.metadata.get("decides", True) and written.get(name) is None
    }
    assert absent == set(IF_ABSENT)
    assert all(IF_ABSENT[name] in ("none", str(fields[name].default)) for name in absent)
    assert {name for name in OF_THE_ARM if name.startswith(("aug", "rand", "mix", "jsd"))} == {
        name for name in fields if name.startswith(("aug", "rand", "mix_a", "jsd"))
    }
