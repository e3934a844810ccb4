"""Measured beside published: intervals, gains, bold cells, failed cells, files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from expansion.common.files import to_yaml
from expansion.metrics.predictions import Predictions
from expansion.reproduce.nodes import EVALUATION, PlanOptions
from expansion.reproduce.outputs import grid, report, write_outputs
from expansion.reproduce.papers import read_tables
from expansion.reproduce.planning import plan_tables
from expansion.reproduce.results import interval_of_mean, results_of
from expansion.reproduce.scales import Scale, read_scale

NUM_TEST = 200


def predictions(hits: np.ndarray) -> Predictions:
    """Predictions of two classes, right where `hits` says so."""
    labels = np.arange(len(hits)) % 2
    chosen = np.where(hits, labels, 1 - labels)
    probabilities = np.eye(2, dtype=np.float32)[chosen]
    names = tuple(f"{i}.png" for i in range(len(hits)))
    return Predictions(names, labels, probabilities, ("a", "b"))


def test_the_interval_of_one_run_is_that_of_a_mean_of_images():
    hits = np.random.default_rng(0).random(NUM_TEST) < 0.8
    scores = 100.0 * hits
    half = stats.t.ppf(0.975, NUM_TEST - 1) * scores.std(ddof=1) / math.sqrt(NUM_TEST)
    low, high = interval_of_mean([predictions(hits)])
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half))


def test_the_interval_of_runs_that_differ_widely_is_that_of_a_mean_of_runs():
    """All images of a run are right or wrong together, so that only the seeds count."""
    shares = [0.5, 0.6, 0.9]
    runs = [predictions(np.arange(1000) < 1000 * share) for share in shares]
    values = 100 * np.array(shares)
    half = stats.t.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
    low, high = interval_of_mean(runs)
    assert low == pytest.approx(max(0, values.mean() - half), abs=1.5)
    assert high == pytest.approx(min(100, values.mean() + half), abs=1.5)


@pytest.fixture
def finished(tmp_path):
    """Function that plans Table 4 of DistDiff at the tiny scale and writes runs and figures.

    Args: accuracy of each row, in its order; None leaves a row out.
    """

    def finish(*accuracies: float | None):
        (table,) = read_tables(["distdiff/table4"])
        tiny = read_scale("tiny")
        scale = Scale("tiny", dataclasses.replace(tiny.file, seeds=(1, 2)))
        plan = plan_tables([table], scale, tmp_path, PlanOptions())
        by_row = dict(zip(table.row_names, accuracies, strict=True))
        for cell, ways in plan.cells[table.name]:
            accuracy = by_row[cell.row]
            if accuracy is None:
                continue
            for number, path in enumerate(ways[""].sources):
                path.mkdir(parents=True, exist_ok=True)
                if cell.column == "FID-3K":
                    figures = {"figures": {"paper_frechet": accuracy / 10}}
                    (path / EVALUATION).write_text(json.dumps(figures))
                    continue
                hits = np.arange(NUM_TEST) < NUM_TEST * (accuracy + number) / 100
                predictions(hits).save(path / "predictions.npz")
                mean = 100 * hits.mean()
                facts = {"last_accuracy": float(mean), "best_accuracy": float(mean) + 1}
                facts |= {"seed": number + 1, "arm": cell.row, "num_test": NUM_TEST}
                (path / "results.yaml").write_text(to_yaml(facts))
        return table, plan

    return finish


def test_a_cell_has_mean_deviation_interval_published_value_and_difference(finished):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    result = results_of(table, plan, {}).results["p_c", "accuracy"]
    assert (result.measured.mean, result.measured.deviation) == (80.5, 0.5)
    assert result.measured.interval[0] < 80.5 < result.measured.interval[1]
    assert result.published.value == 82.70
    assert result.difference == pytest.approx(81.5 - 82.70)  # the paper reports the best epoch
    assert result.gain.mean == pytest.approx(10.0) and result.gain.gain.verdict == "better"
    assert result.published_gain == pytest.approx(82.70 - 76.57)


def test_a_distance_in_other_features_than_the_papers_has_no_difference_to_the_published(finished):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    result = results_of(table, plan, {}).results["p_c", "FID-3K"]
    assert result.measured.mean == 8.0 and result.published.value == 68.82
    assert result.difference is None and result.gain.mean == pytest.approx(1.0)
    paper = dataclasses.replace(plan, scale=read_scale("paper"))
    result = results_of(table, paper, {}).results["p_c", "FID-3K"]
    assert result.difference == pytest.approx(8.0 - 68.82)


def test_the_best_of_a_column_is_bold_and_less_is_better_for_a_distance(finished):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    text = grid(results_of(table, plan, {}), "latex")
    assert r"\textbf{90.50 $\pm$ 0.50 (83.09 $\pm$ 0.11)}" in text
    assert r"\textbf{7.00 (72.56)}" in text and text.count(r"\textbf") == 2
    assert r"p\_c" in text and text.startswith(r"\begin{tabular}")


def test_the_published_order_is_compared_with_the_measured_one(finished):
    table, plan = finished(70.0, 80.0, 90.0, 85.0)
    results = results_of(table, plan, {})
    assert results.order("accuracy") == (5, 6)  # all pairs but the last two rows
    assert results.order("FID-3K") == (0 + 1, 6)


def test_a_table_with_a_failed_arm_still_prints_and_says_why(finished, tmp_path):
    table, plan = finished(70.0, None, 85.0, 90.0)
    by_place = {(c.row, c.column): ways[""] for c, ways in plan.cells[table.name]}
    run = by_place["p_c", "accuracy"].sources[0]
    results = results_of(table, plan, {run: "error: no memory"})
    assert results.results["p_c", "accuracy"].failed
    assert not results.results["p_c", "FID-3K"].failed
    text = report(results, "text")
    assert "failed (82.7)" in text and "failed: error: no memory" in text
    assert "not run yet" in text and "90.50 +- 0.50" in text


def test_all_files_hold_the_same_numbers(finished, tmp_path):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    results = results_of(table, plan, {})
    page = write_outputs([results], tmp_path / "out", "a heading")
    folder = tmp_path / "out" / "tables" / "distdiff"
    rows = list(csv.DictReader(io.StringIO((folder / "table4.csv").read_text())))
    (row,) = (r for r in rows if (r["row"], r["column"]) == ("p_g", "accuracy"))
    assert (row["mean"], row["published"], row["n"]) == ("85.5", "82.84", "2")
    assert float(row["difference"]) == pytest.approx(86.5 - 82.84)
    shown = "85.50 +- 0.50"
    assert shown in page.read_text() and shown in (folder / "table4.md").read_text()
    assert r"85.50 $\pm$ 0.50" in (folder / "table4.tex").read_text()
    document = (tmp_path / "out" / "tables.tex").read_text()
    assert r"\input{tables/distdiff/table4}" in document and r"\usepackage{booktabs}" in document


def test_what_the_paper_leaves_open_stands_below_the_table(finished):
    table, plan = finished(None, None, None, None)
    text = report(results_of(table, plan, {}), "markdown")
    assert "- open in the paper: FID: against all training images" in text
    assert "- at this scale: caltech-101 -> mnist-few-shot" in text
