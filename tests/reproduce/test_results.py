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
from expansion.reproduce.readings import is_evaluated
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
    assert result.difference is None  # these are digits, not its images
    paper = dataclasses.replace(plan, scale=read_scale("paper"))
    result = results_of(table, paper, {}).results["p_c", "accuracy"]
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
    assert r"\textbf{90.50 $\pm$ 0.50} (83.09 $\pm$ 0.11)" in text  # the published one is not
    assert r"\textbf{7.00} (72.56)" in text and text.count(r"\textbf") == 2
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
    assert "failed (82.7)" in text and "\nfailed: p_c, accuracy: no memory\n" in text
    row = next(line for line in text.splitlines() if line.split()[:2] == ["p_c", "accuracy"])
    assert "failed" in row and "memory" not in row  # a long reason would widen all lines
    assert "not run yet" in text and "90.50 +- 0.50" in text


def test_all_files_hold_the_same_numbers(finished, tmp_path):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    results = results_of(table, dataclasses.replace(plan, scale=read_scale("paper")), {})
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


def test_a_run_whose_results_are_damaged_fails_its_cell_in_place_of_being_left_out(finished):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    by_place = {(c.row, c.column): ways[""] for c, ways in plan.cells[table.name]}
    whole = by_place["p_c", "accuracy"].sources[1] / "results.yaml"
    for text in ("", whole.read_text()[:20], whole.read_text().replace("81.0", ".nan"), "a: ["):
        whole.write_text(text)
        result = results_of(table, plan, {}).results["p_c", "accuracy"]
        assert result.failed and result.measured is None
        assert f"{whole} is damaged; remove this folder" in result.problem


def test_an_interval_that_cannot_be_had_says_why(finished):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    by_row = {c.row: ways[""] for c, ways in plan.cells[table.name] if c.column == "accuracy"}
    runs = {row: way.sources[0] for row, way in by_row.items()}
    (runs["p_c"] / "predictions.npz").unlink()
    (runs["p_g"] / "predictions.npz").write_bytes(b"PK torn")
    predictions(np.arange(NUM_TEST) < 3).save(runs["p_c and p_g"] / "predictions.npz")
    results = results_of(table, plan, {})
    for row in ("p_c", "p_g", "p_c and p_g"):
        result = results.results[row, "accuracy"]
        assert result.measured.interval is None and not result.failed
    text = report(results, "text")
    for row in ("p_c", "p_g"):
        reason = f"no predictions.npz in {runs[row]}"
        assert f"no interval: {row}, accuracy: {reason}" in text
        assert f"no interval of the gain: {row}, accuracy: {reason}" in text
    assert "results.yaml has 90.50, predictions.npz 46.25" in text


def test_differences_of_small_distances_show_as_many_decimals_as_these(finished):
    table, plan = finished(0.35, 0.31, 0.35, 0.35)
    text = report(results_of(table, plan, {}), "text")
    row = next(line for line in text.splitlines() if line.split()[:2] == ["p_c", "FID-3K"])
    assert "0.031" in row and "-0.004" in row
    assert "less is better: a gain below 0 is an improvement" in text


def test_the_interval_of_one_seed_is_not_called_one_over_seeds(finished):
    table, plan = finished(70.0, 80.0, 85.0, 90.0)
    assert "over other seeds and test images" in report(results_of(table, plan, {}), "text")
    for cells in plan.cells[table.name]:
        way = cells[1][""]
        cells[1][""] = dataclasses.replace(way, sources=way.sources[:1])
    text = report(results_of(table, plan, {}), "text")
    assert "over other test images" in text and "over other seeds" not in text


@pytest.mark.parametrize(
    "content",
    [
        "", "{}", "[]", '{"lines": []}', '{"lines": 3}', '{"lines": [4]}', '{"lines": [{',
        '{"lines": [{"images_per_second": 0, "overhead": 0.1}]}',
        '{"lines": [{"images_per_second": NaN, "overhead": 0.1}]}',
        '{"lines": [{"images_per_second": 5.0}]}',
    ],
)  # fmt: skip
def test_a_damaged_file_of_times_is_made_again_and_until_then_fails_its_cells(content, tmp_path):
    (table,) = read_tables(["distdiff/table13"])
    plan = plan_tables([table], read_scale("tiny"), tmp_path, PlanOptions())
    (path,) = next(ways for cell, ways in plan.cells[table.name] if cell.row == "SD")[""].sources
    path.parent.mkdir()
    path.write_text(content)
    assert not plan.nodes[path].is_finished()
    result = results_of(table, plan, {}).results["SD", "seconds"]
    assert result.failed and result.problem == f"{path} has no seconds; remove it"
    path.write_text('{"lines": [{"images_per_second": 4.0, "overhead": 0.0}]}')
    assert plan.nodes[path].is_finished()
    assert results_of(table, plan, {}).results["SD", "seconds"].measured.mean == 0.25


@pytest.mark.parametrize(
    "figures", ["", ', "figures": {}', ', "figures": {"paper_frechet": NaN, "paper_mmd": 1.0}',
                ', "figures": {"paper_frechet": 1.0}', ', "figures": []'],
)  # fmt: skip
def test_figures_of_a_set_that_are_absent_or_no_numbers_are_made_again(figures, tmp_path):
    path = tmp_path / "evaluation.json"
    whole = ', "figures": {"paper_frechet": 2.0, "paper_mmd": 0.0}'
    for text, expected in ((figures, False), (whole, True)):
        path.write_text(f'{{"settings": {{"paper_images": 30}}{text}}}')
        assert is_evaluated(path, 30) == expected and not is_evaluated(path, 40)
    path.write_text('{"settings": {}, "figures": {}}')
    assert not is_evaluated(path, None)
    path.write_text('{"settings": {}, "figures": {"frechet": 1.0}}')
    assert is_evaluated(path, None)
