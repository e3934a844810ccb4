"""The tables of parse_logs.py: forms, columns, order of rows, notes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import parse_logs
from tests.helpers.run_folders import notes_of, row_of


def test_text_table(two_arms, table):
    assert table()[:5] == [
        "digits, resnet10_tiny, unpretrained",
        "",
        "arm         images  steps  last-epoch top-1 (%)    gain  95 % interval  verdict  "
        "best on test (%)  test images  seeds",
        "Original    20 + 0    300         72.00 +- 2.00                                  "
        "   73.50 +- 2.50           15      2",
        "gen_10x   20 + 200    300         85.00 +- 5.00  +13.00    no interval           "
        "   86.50 +- 5.50           15      2",
    ]


def test_the_share_of_accepted_images_is_a_column_where_a_run_knows_it(two_arms, write_arm, table):
    write_arm("gen_10x_amst", [90.0, 92.0], acceptance_rate=80.5)
    lines = table()
    assert row_of(lines, "arm").endswith("best on test (%) accepted (%) test images seeds")
    assert row_of(lines, "gen_10x_amst").endswith("80.5 15 2")
    assert row_of(lines, "Original").endswith("73.50 +- 2.50 15 2")
    assert any(line.startswith("accepted:") for line in lines)
    assert any("gen_10x_amst" in line and ",80.5,15,2" in line for line in table("--format", "csv"))


def test_text_table_ends_with_what_its_columns_are(two_arms, table):
    *_, interval, std, last, best = table()
    assert "95 % interval" in interval and "of 20 arms" in interval
    assert "population" in std and "seeds" in std
    assert last.startswith("last-epoch top-1:")
    assert best.startswith("best on test:") and "papers" in best and "optimistic" in best


def test_markdown_table(two_arms, table):
    assert table("--format", "markdown")[:6] == [
        "### digits, resnet10_tiny, unpretrained",
        "",
        "| arm | images | steps | last-epoch top-1 (%) | gain | 95 % interval | verdict "
        "| best on test (%) | test images | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| Original | 20 + 0 | 300 | 72.00 +- 2.00 |  |  |  | 73.50 +- 2.50 | 15 | 2 |",
        "| gen_10x | 20 + 200 | 300 | 85.00 +- 5.00 | +13.00 | no interval |  "
        "| 86.50 +- 5.50 | 15 | 2 |",
    ]


def test_latex_table(two_arms, table):
    lines = table("--format", "latex")
    begin = lines.index(r"\begin{tabular}{lrrrrrrrrr}")
    assert lines[begin + 1 : begin + 8] == [
        r"\toprule",
        r"arm & images & steps & last-epoch top-1 (\%) & gain & 95 \% interval & verdict "
        r"& best on test (\%) & test images & seeds \\",
        r"\midrule",
        r"Original & 20 + 0 & 300 & 72.00 $\pm$ 2.00 &  &  &  & 73.50 $\pm$ 2.50 & 15 & 2 \\",
        r"gen\_10x & 20 + 200 & 300 & 85.00 $\pm$ 5.00 & +13.00 & no interval &  "
        r"& 86.50 $\pm$ 5.50 & 15 & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    others = lines[:begin] + lines[begin + 8 :]
    assert all(line.startswith("% ") for line in others if line)


def test_csv_table(two_arms, tmp_path, write_arm, capsys):
    write_arm("gen_2x", [60.0], steps=100)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "options.yaml").touch()
    parse_logs.main([str(tmp_path), "--table", "--format", "csv"])
    out, err = capsys.readouterr()
    facts = {"dataset": "digits", "arch": "resnet10_tiny", "pretrained": "False", "lr": "0.1"}
    facts |= {"num_real": "20", "metric": "last_accuracy", "low": "", "high": "", "num_test": "15"}
    first = {"arm": "Original", "num_generated": "0", "steps": "300", "mean": "72.0", "std": "2.0"}
    first |= {
        "gain": "",
        "verdict": "",
        "best_mean": "73.5",
        "best_std": "2.5",
        "acceptance_rate": "",
        "n": "2",
    }
    second = {"arm": "gen_2x", "num_generated": "200", "steps": "100", "mean": "60.0", "std": ""}
    second |= {
        "gain": "-12.0",
        "verdict": "no interval",
        "best_mean": "61.0",
        "best_std": "",
        "acceptance_rate": "",
        "n": "1",
    }
    third = {"arm": "gen_10x", "num_generated": "200", "steps": "300", "mean": "85.0", "std": "5.0"}
    third |= {
        "gain": "13.0",
        "verdict": "no interval",
        "best_mean": "86.5",
        "best_std": "5.5",
        "acceptance_rate": "",
        "n": "2",
    }
    assert list(csv.DictReader(out.splitlines())) == [facts | row for row in (first, second, third)]
    assert "note: gen_2x" in err and "unfinished: " in err


def test_the_best_accuracy_is_not_shown_twice(two_arms, table):
    lines = table("--metric", "best_accuracy")
    # Best: 71, 76 against 81, 92.
    assert row_of(lines, "arm") == (
        "arm images steps best on test (%) gain 95 % interval verdict test images seeds"
    )
    assert row_of(lines, "gen_10x") == "gen_10x 20 + 200 300 86.50 +- 5.50 +13.00 no interval 15 2"
    (header, *_) = table("--metric", "best_accuracy", "--format", "csv")
    assert header.endswith("metric,mean,std,gain,low,high,verdict,acceptance_rate,num_test,n")


def test_a_metric_that_some_runs_lack_is_averaged_over_the_others(write_arm, table):
    write_arm("Original", [70.0, 74.0])
    write_arm("gen_10x", [80.0, 90.0], selected_accuracy=79.0)
    lines = table("--metric", "selected_accuracy")
    assert row_of(lines, "Original") == "Original 20 + 0 300 - 73.50 +- 2.50 15 0"
    assert row_of(lines, "gen_10x") == "gen_10x 20 + 200 300 79.00 +- 0.00 86.50 +- 5.50 15 2"
    assert any(line.startswith("selected top-1:") for line in lines)


def test_original_is_first_and_the_others_follow_in_natural_order(write_arm, table):
    for arm in ("gen_10x", "Original", "gen_2x", "aug"):
        write_arm(arm, [50.0])
    arms = [line.split()[0] for line in table()[3:7]]
    assert arms == ["Original", "aug", "gen_2x", "gen_10x"]


def test_a_loss_has_a_negative_gain_and_one_run_no_deviation(write_arm, table):
    write_arm("Original", [70.0, 74.0])
    write_arm("gen_10x", [71.5])
    assert row_of(table(), "gen_10x") == "gen_10x 20 + 200 300 71.50 -0.50 no interval 72.50 15 1"


def test_without_original_there_is_no_gain(write_arm, table):
    write_arm("gen_10x", [80.0, 90.0])
    assert row_of(table(), "gen_10x") == "gen_10x 20 + 200 300 85.00 +- 5.00 86.50 +- 5.50 15 2"


def test_each_dataset_arch_and_start_has_its_own_table_and_original(two_arms, write_arm, table):
    write_arm("gen_10x", [99.0], pretrained=True)
    write_arm("Original", [60.0], dataset="caltech-101")
    write_arm("gen_10x", [61.0], dataset="caltech-101")
    write_arm("gen_10x", [98.0], arch="resnet50")
    lines = table()
    titles = [line for line in lines if line.startswith(("digits", "caltech"))]
    assert sorted(titles) == [
        "caltech-101, resnet10_tiny, unpretrained",
        "digits, resnet10_tiny, pretrained",
        "digits, resnet10_tiny, unpretrained",
        "digits, resnet50, unpretrained",
    ]
    gains = [
        cell for line in lines for cell in line.split() if cell.startswith("+") and len(cell) > 2
    ]
    assert sorted(gains) == ["+1.00", "+13.00"]


def test_equally_trained_arms_get_no_note(two_arms, table):
    assert notes_of(table()) == []


@pytest.mark.parametrize(
    ("changes", "key", "meaning"),
    [
        ({"steps": 600}, "steps", "Arms are only comparable at equal steps."),
        ({"lr": 0.02}, "lr", "With other settings, a gain is of these too."),
        (
            {"training_images": "7"},
            "training_images",
            "With other training images, a gain compares these too.",
        ),
    ],
)
def test_arms_that_were_trained_otherwise_get_a_note(changes, key, meaning, write_arm, table):
    write_arm("Original", [70.0, 74.0])
    write_arm("equal_5x", [75.0, 76.0])
    write_arm("gen_10x", [80.0, 90.0], **changes)
    assert notes_of(table()) == [f"note: gen_10x differs from Original in {key}. {meaning}"]


def test_other_seeds_get_a_note(write_arm, table):
    write_arm("Original", [70.0, 74.0])
    write_arm("gen_10x", [80.0])
    (note,) = notes_of(table())
    assert note == "note: gen_10x differs from Original in seed. Other seeds are not paired."


def test_steps_that_differ_between_seeds_are_all_shown(write_arm, table):
    write_arm("Original", [70.0])
    write_arm("Original", [74.0], seed=2, steps=1000)
    assert row_of(table(), "Original") == (
        "Original 20 + 0 300/1000 72.00 +- 2.00 73.00 +- 2.00 15 2"
    )


def test_an_arm_at_several_learning_rates_shows_them_and_meets_its_own_original(write_arm, table):
    for lr, original, generated in ((0.1, 70.0, 80.0), (0.02, 60.0, 63.0)):
        write_arm("Original", [original], lr=lr)
        write_arm("gen_10x", [generated], lr=lr)
    write_arm("other", [65.0], lr=0.02)
    write_arm("third", [66.0], lr=0.5)
    lines = table()
    assert row_of(lines, "gen_10x, lr 0.1").endswith("+10.00 no interval 81.00 15 1")
    assert row_of(lines, "gen_10x, lr 0.02").endswith("+3.00 no interval 64.00 15 1")
    assert row_of(lines, "other").endswith("+5.00 no interval 66.00 15 1")
    assert row_of(lines, "third") == "third 20 + 200 300 66.00 67.00 15 1"  # no Original at 0.5
    (note,) = notes_of(lines)
    assert note.startswith("note: third differs from Original, lr 0.1 in lr. ")


def test_the_same_arm_in_two_folders_is_named_with_its_folder(write_run, table):
    facts = {"last_accuracy": 70.0, "best_accuracy": 71.0, "arm": "Original", "dataset": "digits"}
    facts |= {"arch": "resnet50", "pretrained": False, "lr": 0.1}
    for folder in ("a", "b"):
        write_run(f"{folder}/run/seed1", facts)
    names = [line.split("  ")[0] for line in table()[3:5]]
    assert names == [f"Original, {Path('a/run')}", f"Original, {Path('b/run')}"]
