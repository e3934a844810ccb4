"""parse_logs.py: the released script's lines, and the tables of arms, by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import parse_logs
from expansion.common.errors import InputError
from tests.conftest import ROOT
from tests.helpers.run_folders import notes_of, row_of


def test_multi_prints_the_lines_of_the_released_script(write_run, tmp_path, capsys):
    ten = write_run("seed10", {"best_accuracy": 87, "last_accuracy": 1.0})
    one = write_run("seed1", {"best_accuracy": 80.0, "last_accuracy": 1.0})
    two = write_run("seed2", {"best_accuracy": 82.00000000000001, "last_accuracy": 1.0})
    write_run("other/seed3", {"best_accuracy": 1.0})  # two levels down: not read
    parse_logs.main([str(tmp_path), "--multi"])
    # Mean 83; deviations -3, -1, 4: population variance 26/3, std 2.94 (of a sample 3.61).
    assert capsys.readouterr().out == (
        f"Accuracy of {one} is 80.0\n"
        f"Accuracy of {two} is 82.00000000000001\n"
        f"Accuracy of {ten} is 87\n"
        "Average  of 3 files is 83.00 +- 2.94\n"
    )


def test_one_folder_is_an_average_of_one_file(write_run, tmp_path, capsys):
    path = write_run("seed1", {"best_accuracy": 80.126, "last_accuracy": 79.0})
    parse_logs.main([str(tmp_path / "seed1")])
    expected = f"Accuracy of {path} is 80.126\nAverage  of 1 files is 80.13 +- 0.00\n"
    assert capsys.readouterr().out == expected


def test_the_metric_can_be_chosen_for_the_average(write_run, tmp_path, capsys):
    write_run("seed1", {"best_accuracy": 80.0, "last_accuracy": 70.0, "selected_accuracy": 75.0})
    parse_logs.main([str(tmp_path), "--multi", "--metric", "last_accuracy"])
    assert "files is 70.00" in capsys.readouterr().out
    parse_logs.main([str(tmp_path), "--multi", "--metric", "selected_accuracy"])
    assert "files is 75.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        "best_accuracy: null\n",
        "last_accuracy: 3.0\n",
        "",
        "- 1\n",
        "best_accuracy: [1\n",
        "best_accuracy: high\n",
        "best_accuracy: .nan\n",
        "best_accuracy: 70.0\ndate: 2024-13-45\n",
    ],
    ids=["None", "no key", "empty", "list", "no YAML", "text", "nan", "bad date"],
)
def test_a_file_without_the_number_is_skipped_with_a_warning(content, write_run, tmp_path, capsys):
    write_run("seed1", {"best_accuracy": 50.0})
    broken = write_run("seed2", content)
    write_run("seed3", {"best_accuracy": 60.0})
    parse_logs.main([str(tmp_path), "--multi"])
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == [
        f"Accuracy of {broken} is None",
        f"Accuracy of {tmp_path / 'seed3' / 'results.yaml'} is 60.0",
        "Average  of 2 files is 55.00 +- 5.00",
    ]
    assert err.count("\n") == 1 and broken in err


def test_a_folder_without_performances_says_so(write_run, tmp_path, capsys):
    nothing = "No valid performances found in the specified directory.\n"
    for form in ([], ["--multi"]):
        parse_logs.main([str(tmp_path), *form])
        assert capsys.readouterr() == (nothing, "")
    write_run("seed1", {"best_accuracy": None})
    parse_logs.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert out == nothing and "--multi" in err
    parse_logs.main([str(tmp_path), "--multi"])
    out, err = capsys.readouterr()
    assert out.endswith(nothing) and "--multi" not in err


@pytest.mark.parametrize("form", [["--multi"], ["--table"], []])
def test_a_folder_that_does_not_exist_is_an_error_of_one_line(form, tmp_path):
    command = [sys.executable, str(ROOT / "parse_logs.py"), str(tmp_path / "nope"), *form]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "nope is not a folder" in done.stderr


def test_no_torch_numpy_or_pillow_is_imported(two_arms, tmp_path):
    code = (
        "import sys, parse_logs\n"
        "parse_logs.main([sys.argv[1], '--table'])\n"
        "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "gen_10x" in done.stdout


@pytest.fixture
def released_runs(write_run) -> str:
    """Runs of the released DistDiff code, in a folder whose name looks like theirs."""
    start = "my_pretrained_models/checkpoint/caltech-101/resnet50"
    for seed, accuracy in ((1, 60.0), (2, 64.0)):
        content = {"best_accuracy": accuracy + 1, "last_accuracy": accuracy}
        write_run(f"{start}_unpretrained_lr0.1/seed{seed}", content)
        content = {"best_accuracy": accuracy + 21, "last_accuracy": accuracy + 20}
        write_run(f"{start}_unpretrained_save/distdiff_batch_5x_lr0.1/seed{seed}", content)
    write_run(
        f"{start}_pretrained_sd_lr_5x_lr1e-05/seed1", {"best_accuracy": 9.0, "last_accuracy": 8}
    )
    return "my_pretrained_models/checkpoint"


@pytest.mark.parametrize("below", ["", "caltech-101"])
def test_runs_without_keys_are_read_from_their_path(below, released_runs, tmp_path, capsys):
    parse_logs.main([str(tmp_path / released_runs / below), "--table"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("caltech-101, ")] == [
        "caltech-101, resnet50, pretrained",
        "caltech-101, resnet50, unpretrained",
    ]
    assert row_of(lines, "Original") == "Original - - 62.00 +- 2.00 63.00 +- 2.00 - 2"
    generated = row_of(lines, "save/distdiff_batch_5x")
    numbers = "82.00 +- 2.00 +20.00 no interval 83.00 +- 2.00 - 2"
    assert generated == f"save/distdiff_batch_5x - - {numbers}"
    assert row_of(lines, "sd_lr_5x") == "sd_lr_5x - - 8.00 9.00 - 1"
    assert notes_of(lines) == []


def test_the_folder_of_one_arm_alone_is_read_from_its_path_too(released_runs, tmp_path, capsys):
    folder = "caltech-101/resnet50_unpretrained_save/distdiff_batch_5x_lr0.1"
    parse_logs.main([str(tmp_path / released_runs / folder), "--table"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "caltech-101, resnet50, unpretrained"
    assert lines[3].startswith("save/distdiff_batch_5x ")


def test_learning_rate_and_seeds_of_a_path_count_in_the_note(write_run, table):
    content = {"best_accuracy": 9.0, "last_accuracy": 8.0}
    write_run("stl10/resnet50_unpretrained_lr0.1/seed1", content)
    write_run("stl10/resnet50_unpretrained_sd_5x_lr0.02/seed2", content)
    (note,) = notes_of(table())
    assert note.startswith("note: sd_5x differs from Original in lr, seed.")


def test_released_and_own_runs_stand_in_one_table(write_run, write_arm, table):
    folder = "released/digits/resnet10_tiny_unpretrained_lr0.10"
    for seed in (1, 2):
        write_run(f"{folder}/seed{seed}", {"best_accuracy": 61.0, "last_accuracy": 60.0})
    write_arm("gen_10x", [80.0, 90.0])
    lines = table()
    assert row_of(lines, "Original") == "Original - - 60.00 +- 0.00 61.00 +- 0.00 - 2"
    assert "+25.00" in row_of(lines, "gen_10x")
    assert notes_of(lines) == []  # the released run's steps and images are not known


def test_a_path_of_another_form_still_makes_a_row(write_run, table):
    write_run("somewhere/mine/seed1", {"best_accuracy": 9.0, "last_accuracy": 8.0})
    lines = table()
    assert (
        lines[0] == "somewhere, unknown arch" and row_of(lines, "mine") == "mine - - 8.00 9.00 - 1"
    )


def test_an_unfinished_run_is_mentioned(two_arms, tmp_path, table):
    begun = tmp_path / "digits" / "resnet10_tiny_unpretrained_new_lr0.1" / "seed3"
    begun.mkdir(parents=True)
    (begun / "options.yaml").touch()
    (tmp_path / "digits" / "resnet10_tiny_unpretrained_lr0.1" / "seed1" / "options.yaml").touch()
    unfinished = [line for line in table() if line.startswith("unfinished")]
    assert unfinished == [f"unfinished: {begun}"]


def test_an_unreadable_file_is_left_out_of_the_table(two_arms, write_run, tmp_path, capsys):
    broken = write_run("digits/resnet10_tiny_unpretrained_gen_10x_lr0.1/seed3", "last_accuracy: [")
    parse_logs.main([str(tmp_path), "--table"])
    out, err = capsys.readouterr()
    assert row_of(out.splitlines(), "gen_10x").endswith(
        "85.00 +- 5.00 +13.00 no interval 86.50 +- 5.50 15 2"
    )
    assert notes_of(out.splitlines()) == []  # the broken run's seed does not count
    assert err.startswith("warning: ") and broken in err


def test_a_table_of_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no readable results.yaml below"):
        parse_logs.main([str(tmp_path), "--table"])


def test_a_format_without_a_table_is_an_error(tmp_path):
    with pytest.raises(InputError, match="--format latex needs --table"):
        parse_logs.main([str(tmp_path), "--format", "latex"])
