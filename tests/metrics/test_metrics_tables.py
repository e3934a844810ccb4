"""Tables with intervals, verdicts, columns of settings; matrices; what no table can hold."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest

import parse_logs
from expansion.common.errors import InputError
from tests.conftest import ROOT
from tests.helpers.run_folders import notes_of, row_of

# 40 images, three seeds; see test_comparison.py for the interval.
NONE_RIGHT = [[0] * 40] * 3
SOME_RIGHT = [pattern * 10 for pattern in ([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0])]


def test_a_gain_has_an_interval_and_a_verdict(write_predicted, table):
    write_predicted("Original", NONE_RIGHT)
    write_predicted("gen_10x", SOME_RIGHT)
    lines = table()
    assert row_of(lines, "gen_10x") == (
        "gen_10x 20 + 200 300 41.67 +- 11.79 +41.67 [+5.29, +78.04] better 42.67 +- 11.79 40 3"
    )
    assert not any(line.startswith(("no interval", "one seed")) for line in lines)
    header, *rows = table("--format", "csv")
    (row,) = csv.DictReader([header, rows[-1]])
    assert (row["low"], row["high"], row["verdict"]) == ("5.2945", "78.0388", "better")
    assert (row["num_test"], row["n"]) == ("40", "3")


def test_one_seed_is_said_beside_the_verdict_and_below_the_table(write_predicted, table):
    write_predicted("Original", [[0] * 40])
    write_predicted("gen_10x", [[1] * 40])
    lines = table()
    assert "cannot tell (1 seed)" in row_of(lines, "gen_10x")
    assert any("gen_10x is over the test images alone" in line for line in lines)


def test_a_spread_that_was_borrowed_is_said(write_predicted, table):
    write_predicted("Original", SOME_RIGHT)
    write_predicted("gen_10x", [[1] * 40])
    (line,) = [line for line in table() if line.startswith("one seed on one side: ")]
    assert "the interval of gen_10x takes the spread over seeds from the other side" in line


def test_other_seeds_are_two_samples(write_predicted, table):
    write_predicted("Original", SOME_RIGHT, seeds=[4, 5, 6])
    write_predicted("gen_10x", [[1, *each[1:]] for each in SOME_RIGHT])
    lines = table()
    assert "cannot tell" in row_of(lines, "gen_10x") and "seed" in notes_of(lines)[0]


def test_runs_without_predictions_are_shown_without_an_interval(
    write_arm, write_predicted, table, tmp_path
):
    write_predicted("Original", NONE_RIGHT)
    write_arm("gen_10x", [80.0, 90.0, 85.0], num_test=40, test_images="40 images, content 1")
    write_predicted("gen_2x", SOME_RIGHT)
    lines = table()
    assert "+85.00 no interval" in row_of(lines, "gen_10x") and "[+5.29" in row_of(lines, "gen_2x")
    (line,) = [line for line in lines if line.startswith("no interval for")]
    folder = tmp_path / "digits" / "resnet10_tiny_unpretrained_gen_10x_lr0.1" / "seed1"
    assert line == f"no interval for gen_10x: no predictions.npz in {folder} and 2 more"


def test_damaged_predictions_are_named_and_leave_no_interval(write_predicted, tmp_path, capsys):
    write_predicted("Original", NONE_RIGHT)
    write_predicted("gen_10x", SOME_RIGHT)
    path = next(tmp_path.rglob("*gen_10x*/seed2")) / "predictions.npz"
    path.write_bytes(b"no numbers")
    parse_logs.main([str(tmp_path), "--table"])
    shown = capsys.readouterr()
    assert "no interval" in row_of(shown.out.splitlines(), "gen_10x")
    assert shown.err.count("\n") == 1 and f"{path} holds no predictions" in shown.err


def test_predictions_of_other_results_leave_no_interval(write_predicted, table, tmp_path):
    write_predicted("Original", NONE_RIGHT)
    write_predicted("gen_10x", SOME_RIGHT)
    path = next(tmp_path.rglob("*gen_10x*/seed2")) / "results.yaml"
    path.write_text(path.read_text().replace("last_accuracy: 25.0", "last_accuracy: 55.0"))
    lines = table()
    assert "no interval" in row_of(lines, "gen_10x")
    assert any("results.yaml has +51.67, predictions.npz +41.67" in line for line in lines)


def test_a_metric_of_predictions_is_computed_where_results_lack_it(write_predicted, table):
    write_predicted("Original", NONE_RIGHT)
    write_predicted("gen_10x", [[1] * 40, [1] * 40, [1] * 39 + [0]])
    lines = table("--metric", "balanced_accuracy")
    # Classes of 14, 13 and 13 images; the last image is of the first class.
    expected = (100 + 100 + (1300 / 14 + 200) / 3) / 3
    assert f" {expected:.2f} +- " in row_of(lines, "gen_10x")
    assert "better" in row_of(lines, "gen_10x")
    assert any(line.startswith("balanced accuracy: mean over the classes") for line in lines)


def test_the_calibration_errors_verdict_is_better_when_it_falls(write_predicted, table):
    write_predicted("Original", [[0] * 300] * 3)
    write_predicted("gen_10x", [[1] * 300] * 3)
    row = row_of(table("--metric", "calibration_error"), "gen_10x")
    assert " -5" in row and "better" in row


def test_a_metric_above_100_is_shown(write_run, tmp_path, capsys):
    write_run("seed1", {"best_accuracy": 180.0})
    write_run("seed2", {"best_accuracy": 190.0})
    parse_logs.main([str(tmp_path), "--multi"])
    assert "Average  of 2 files is 185.00 +- 5.00" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["test_images", "num_test", "real_images"])
@pytest.mark.parametrize("form", [[], ["--matrix", "dataset", "arm"], ["--format", "csv"]])
def test_runs_of_different_test_sets_are_refused_by_name(key, form, write_arm, table):
    write_arm("Original", [70.0, 74.0], **{key: "16"})
    write_arm("gen_10x", [80.0, 90.0], **{key: "17"})
    with pytest.raises(InputError) as caught:
        table(*form)
    message = str(caught.value)
    assert "resnet10_tiny_unpretrained_gen_10x_lr0.1/seed1 and 1 more" in message
    assert f"({key}: 16)" in message and f"({key}: 17)" in message
    assert "separately" in message and "--name" in message


def test_seeds_of_one_arm_with_different_test_sets_are_refused(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("Original", [70.0], seed=2, test_images="15 images, content 9")
    with pytest.raises(InputError, match="different test sets"):
        table()


def test_different_datasets_have_different_test_sets(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("Original", [60.0], dataset="caltech-101", num_test=9, test_images="9 images")
    assert len([line for line in table() if line.startswith("Original")]) == 2


def test_figures_of_a_measured_set_get_columns_and_others_a_blank(tmp_path, write_arm, table):
    write_arm("Original", [70.0, 74.0])
    for arm in ("gen_10x", "other_10x", "odd_10x"):
        folder = f"../../../sets/{arm}"
        write_arm(arm, [80.0, 90.0], expanded_set={"folder": folder}, generated="200 images, ab")
        (tmp_path / "sets" / arm).mkdir(parents=True)
    figures = {"kid": 0.0123456, "coverage": 0.5, "recognised": None, "copies": 3}
    measured = json.dumps({"figures": figures, "generated": "200 images, ab"})
    (tmp_path / "sets" / "other_10x" / "evaluation.json").write_text(measured.replace("ab", "cd"))
    (tmp_path / "sets" / "gen_10x" / "evaluation.json").write_text(measured)
    (tmp_path / "sets" / "odd_10x" / "evaluation.json").write_text('{"figures": [')
    rows = csv.DictReader(table("--format", "csv", "--columns", "kid", "coverage"))
    shown = {row["arm"]: (row["evaluation.kid"], row["evaluation.coverage"]) for row in rows}
    assert shown.pop("gen_10x") == ("0.01235", "0.5")
    assert set(shown.values()) == {("", "")} and len(shown) == 3
    with pytest.raises(InputError, match="unknown setting 'recognised'"):
        table("--columns", "recognised")


def test_settings_get_columns(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("gen_2x", [71.0], expanded_set={"method": "m", "strength": 0.5, "K": 3})
    write_arm("gen_10x", [72.0], expanded_set={"strength": 0.2, "K": 3}, learning={"tau": 0.9})
    lines = table("--columns", "strength", "K", "tau", "seed")
    assert row_of(lines, "arm").startswith("arm images steps strength K tau seed last-epoch")
    assert row_of(lines, "Original").startswith("Original 20 + 0 300 - - - 1 70.00")
    assert row_of(lines, "gen_2x").startswith("gen_2x 20 + 200 300 0.5 3 - 1 71.00")
    assert row_of(lines, "gen_10x").startswith("gen_10x 20 + 200 300 0.2 3 0.9 1 72.00")
    rows = csv.DictReader(table("--format", "csv", "--columns", "strength"))
    assert [row["expanded_set.strength"] for row in rows] == ["", "0.5", "0.2"]


def test_an_unknown_or_ambiguous_setting_is_an_error(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("gen_2x", [71.0], expanded_set={"rho": 0.5}, learning={"rho": 3})
    with pytest.raises(InputError, match="unknown setting 'roh'; did you mean"):
        table("--columns", "roh")
    with pytest.raises(InputError, match="rho may be expanded_set.rho or learning.rho"):
        table("--columns", "rho")
    assert "0.5" in row_of(table("--columns", "expanded_set.rho"), "gen_2x")


@pytest.fixture
def two_datasets(write_arm):
    """Arm A is best on digits, B on pets, where both B and C have 60.00."""
    other = {"dataset": "pets", "num_test": 9, "test_images": "9 images, content 3"}
    write_arm("Original", [70.0, 74.0])
    write_arm("A", [80.0, 90.0])
    write_arm("Original", [50.0, 50.0], **other)
    write_arm("A", [55.0, 57.0], **other)
    write_arm("B", [60.001, 60.001], **other)
    write_arm("C", [59.999, 59.999], **other)


def test_a_matrix_has_the_best_of_each_row_in_bold(two_datasets, table):
    lines = table("--matrix", "dataset", "arm")
    assert lines[:5] == [
        "resnet10_tiny, unpretrained: last-epoch top-1 (%)",
        "",
        "dataset       Original               A               B               C",
        "digits   72.00 +- 2.00  *85.00 +- 5.00",
        "pets     50.00 +- 0.00   56.00 +- 1.00  *60.00 +- 0.00  *60.00 +- 0.00",
    ]
    assert "digits, resnet10_tiny: test images 15, seeds 2" in lines
    assert "pets, resnet10_tiny: test images 9, seeds 2" in lines
    markdown = table("--matrix", "dataset", "arm", "--format", "markdown")
    assert "| digits | 72.00 +- 2.00 | **85.00 +- 5.00** |  |  |" in markdown
    latex = table("--matrix", "dataset", "arm", "--format", "latex")
    assert r"digits & 72.00 $\pm$ 2.00 & \textbf{85.00 $\pm$ 5.00} &  &  \\" in latex
    rows = list(csv.DictReader(table("--matrix", "dataset", "arm", "--format", "csv")))
    assert rows[1]["B"] == "60.00 +- 0.00" and rows[1]["arch"] == "resnet10_tiny"


def test_a_matrix_of_datasets_in_columns_compares_within_each(two_datasets, table):
    lines = table("--matrix", "arm", "dataset")
    assert row_of(lines, "A") == "A *85.00 +- 5.00 56.00 +- 1.00"
    assert row_of(lines, "B") == "B *60.00 +- 0.00"


def test_the_lowest_calibration_error_is_bold(write_arm, table):
    write_arm("Original", [70.0], calibration_error=9.0)
    write_arm("A", [70.0], calibration_error=4.0)
    assert row_of(
        table("--matrix", "dataset", "arm", "--metric", "calibration_error"), "digits"
    ) == ("digits 9.00 *4.00")


def test_each_arch_has_its_own_matrix(two_datasets, write_arm, table):
    write_arm("A", [11.0], arch="resnet50")
    titles = [line for line in table("--matrix", "dataset", "arm") if line.endswith("top-1 (%)")]
    assert [title.split(",")[0] for title in titles] == ["resnet10_tiny", "resnet50"]


def test_two_arms_in_one_cell_are_refused(two_datasets, table):
    with pytest.raises(InputError, match="two arms are digits / 0.1: .*_A_lr0.1 and .*tiny_unpre"):
        table("--matrix", "dataset", "lr")


def test_arms_that_were_trained_otherwise_are_named_below_a_matrix(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("A", [80.0], steps=900)
    assert len(notes_of(table("--matrix", "dataset", "arm"))) == 1


@pytest.mark.parametrize("form", [["--columns", "rho"], ["--matrix", "dataset", "arm"]])
def test_what_belongs_to_tables_needs_a_table(form, tmp_path):
    with pytest.raises(InputError, match=f"{' '.join(form)} needs --table"):
        parse_logs.main([str(tmp_path), *form])


def test_names_do_not_break_a_table(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("a|b^c~d_", [80.0])
    assert any(line.startswith(r"| a\|b^c~d_ |") for line in table("--format", "markdown"))
    latex = [line for line in table("--format", "latex") if line.startswith("a|b")]
    assert latex[0].startswith(r"a|b\textasciicircum{}c\textasciitilde{}d\_ &")


def test_without_a_table_no_numpy_is_imported(write_predicted, tmp_path):
    write_predicted("Original", NONE_RIGHT)
    folder = next(tmp_path.rglob("seed1")).parent
    code = (
        "import sys, parse_logs\n"
        "parse_logs.main([sys.argv[1], '--multi', '--metric', 'last_accuracy'])\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'PIL'} & set(sys.modules)))\n"
        "parse_logs.main([sys.argv[1], '--table'])\n"
        "print(sorted({'torch', 'PIL'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines().count("[]") == 2
