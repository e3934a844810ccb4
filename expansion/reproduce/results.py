"""What was measured in each cell, beside what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from expansion.common.errors import InputError
from expansion.common.files import is_done
from expansion.metrics.classification import METRICS
from expansion.metrics.comparison import Gain, compare
from expansion.metrics.predictions import Predictions
from expansion.metrics.run_folder import read_run
from expansion.metrics.runs import Comparison, Row, mean_std
from expansion.reproduce.cells import Cell
from expansion.reproduce.nodes import EVALUATION, Plan, WayPlan
from expansion.reproduce.papers import Published, Table
from expansion.reproduce.readings import figure_of, is_number, seconds_of
from expansion.reproduce.schema import LOWER_IS_BETTER

METRIC, BEST = "last_accuracy", "best_accuracy"
OF_RUN = (METRIC, BEST, "seed")  # numbers that every run has
MISSING = "not run yet"


@dataclass(frozen=True)
class Measured:
    """A measured value.

    Attributes:
        mean: Mean over seeds or sets.
        deviation: Population standard deviation; None of a single value.
        count: Number of values.
        interval: 95 % interval of an accuracy, over other test images and other seeds.
        no_interval: Why an accuracy has none; empty if it has.
        best: Mean of the best epochs on the test images, as some papers report it.
        row: The runs, if it is an accuracy.
        label: Which of several ways it is, if the best counts.
    """

    mean: float
    deviation: float | None
    count: int
    interval: tuple[float, float] | None = None
    no_interval: str = ""
    best: float | None = None
    row: Row | None = None
    label: str = ""

    @property
    def digits(self) -> int:
        """Decimals that tables show."""
        return digits_of(self.mean)

    @property
    def rounded(self) -> float:
        """The mean as tables show it."""
        return round(self.mean, self.digits)


@dataclass
class Result:
    """A cell with what came of it.

    Attributes:
        cell: The cell.
        published: The published value, if there is one.
        measured: The measured one; None if there is none.
        problem: Why there is none.
        failed: Whether work for it failed.
        difference: Measured minus published.
        gain: Measured gain over the reference row in the same column.
        published_gain: The published one.
    """

    cell: Cell
    published: Published | None
    measured: Measured | None = None
    problem: str = ""
    failed: bool = False
    difference: float | None = None
    gain: Comparison | None = None
    published_gain: float | None = None


@dataclass(frozen=True)
class TableResults:
    """A table with its results, by (row, column)."""

    table: Table
    results: Mapping[tuple[str, str], Result]
    notes: tuple[str, ...]
    problem: str = ""

    @property
    def rows(self) -> list[str]:
        """The rows that have a cell."""
        present = {row for row, _ in self.results}
        return [name for name in self.table.row_names if name in present]

    @property
    def columns(self) -> list[str]:
        """The columns that have a cell."""
        present = {column for _, column in self.results}
        return [name for name in self.table.column_names if name in present]

    def column(self, name: str) -> list[Result]:
        """The results of a column, from top to bottom."""
        return [each for (_, column), each in self.results.items() if column == name]

    def best_rows(self, column: str) -> set[str]:
        """The rows with the best measured value of a column; none if all have the same."""
        found = {r.cell.row: r.measured.rounded for r in self.column(column) if r.measured}
        if len(set(found.values())) < 2:
            return set()
        lower = self.column(column)[0].cell.spec.measure in LOWER_IS_BETTER
        best = (min if lower else max)(found.values())
        return {row for row, value in found.items() if value == best}

    def order(self, column: str) -> tuple[int, int]:
        """Pairs of rows that stand in the published order, and pairs that could."""
        known = [
            (r.published.value, r.measured.mean)
            for r in self.column(column)
            if r.published and r.measured
        ]
        pairs = [(a, b) for i, a in enumerate(known) for b in known[i + 1 :] if a[0] != b[0]]
        same = sum((a[0] < b[0]) == (a[1] < b[1]) and a[1] != b[1] for a, b in pairs)
        return same, len(pairs)


def results_of(table: Table, plan: Plan, failed: Mapping[Path, str]) -> TableResults:
    """Read what there is of a table.

    Args:
        table: The table.
        plan: Its plan.
        failed: Work that failed -> why.
    """
    if table.name in plan.problems:
        return TableResults(table, {}, (), plan.problems[table.name])
    results: dict[tuple[str, str], Result] = {}
    notes: dict[str, None] = {}
    for cell, ways in plan.cells[table.name]:
        result = Result(cell, table.published.get((cell.row, cell.column)))
        found = {label: _measured(cell, way, failed) for label, way in ways.items()}
        _fill(result, found, table, comparable=plan.scale.is_own)
        results[cell.row, cell.column] = result
        notes |= dict.fromkeys(cell.notes)
    for result in results.values():
        _compare(result, results.get((table.file.reference, result.cell.column)))
    return TableResults(table, results, tuple(notes))


def _fill(
    result: Result, found: Mapping[str, Measured | str], table: Table, comparable: bool
) -> None:
    """Put the best of several ways, or the reason why there is none, into a result.

    Args:
        result: Is filled.
        found: What was measured, by way.
        table: Whose cell it is.
        comparable: Whether the published value is of the same images, networks and kind of device.
    """
    if result.cell.left_out:
        result.problem = result.cell.left_out
        return
    problems = [each for each in found.values() if isinstance(each, str)]
    if problems:
        result.problem = next((p for p in problems if p != MISSING), MISSING)
        result.failed = result.problem != MISSING
        return
    values = {label: each for label, each in found.items() if isinstance(each, Measured)}
    sign = -1 if result.cell.spec.measure in LOWER_IS_BETTER else 1
    label = max(values, key=lambda label: sign * values[label].mean)
    measured = values[label]
    result.measured = Measured(**{**vars(measured), "label": label})
    if result.published is not None and comparable:
        by_best = table.paper.file.reports == "best" and measured.best is not None
        value = measured.best if by_best else measured.mean
        result.difference = value - result.published.value


def _measured(cell: Cell, way: WayPlan, failed: Mapping[Path, str]) -> Measured | str:
    """A measured value, or why there is none."""
    for path in way.sources:
        reason = failed.get(path) or failed.get(path / EVALUATION)
        if reason:
            return reason.removeprefix("error: ")
    measure = cell.spec.measure
    if measure == "accuracy":
        return _accuracy(way.sources)
    files = [each if measure == "seconds" else each / EVALUATION for each in way.sources]
    values = []
    for file in files:
        value = seconds_of(file) if measure == "seconds" else figure_of(file, measure)
        if value is None:
            return f"{file} has no {measure}; remove it" if file.exists() else MISSING
        values.append(value)
    mean, deviation = mean_std(values)
    assert mean is not None
    return Measured(mean, deviation, len(values))


def _accuracy(folders: Sequence[Path]) -> Measured | str:
    if not all(map(is_done, folders)):
        return MISSING
    runs = []
    for folder in folders:
        run = read_run(folder, METRIC)
        if run is None or not all(is_number(run.facts.get(name)) for name in OF_RUN):
            return f"{folder}/results.yaml is damaged; remove this folder to train it again"
        runs.append(run)
    row = Row(str(folders[0].parent), runs)
    mean, deviation = row.mean_std(METRIC)
    assert mean is not None
    interval, problem = _interval(row, mean)
    best = row.mean_std(BEST)[0]
    return Measured(mean, deviation, len(runs), interval, problem, best, row)


def _interval(row: Row, mean: float) -> tuple[tuple[float, float] | None, str]:
    """The interval of a mean accuracy, or why it has none."""
    problem = row.missing_for(METRIC)
    if problem:
        return None, problem
    predictions = [run.predictions for run in row.runs]
    kept = fmean(METRICS[METRIC].of_predictions(each) for each in predictions)
    if abs(kept - mean) > 0.005:
        return None, f"{row.folder}: results.yaml has {mean:.2f}, predictions.npz {kept:.2f}"
    try:
        return interval_of_mean(predictions), ""
    except InputError as error:
        return None, str(error)


def interval_of_mean(runs: Sequence[Predictions]) -> tuple[float, float]:
    """The 95 % interval of a mean top-1 accuracy over runs, percent.

    It is that of the gain over a classifier without errors: see `expansion.metrics.comparison`.

    Args:
        runs: Predictions of the runs.

    Raises:
        InputError: They were tested on different images.
    """
    first = runs[0]
    right = np.eye(len(first.class_names), dtype=np.float32)[first.labels]
    perfect = Predictions(first.file_names, first.labels, right, first.class_names)
    gain = compare(runs, [perfect] * len(runs), METRIC)
    return max(0.0, 100 + gain.low), min(100.0, 100 + gain.high)


def _compare(result: Result, reference: Result | None) -> None:
    """The gains of a cell over the reference row of its column, measured and published."""
    if reference is None or reference is result or result.cell.row == reference.cell.row:
        return
    if result.published and reference.published:
        result.published_gain = result.published.value - reference.published.value
    mine, its = result.measured, reference.measured
    if mine is None or its is None:
        return
    if mine.row is None or its.row is None:
        result.gain = Comparison(mine.mean - its.mean, None)
        return
    mine.row.original = its.row
    result.gain = mine.row.comparison(METRIC)


def digits_of(value: float) -> int:
    """Decimals that tables show of a value, and of its differences to others."""
    return 3 if abs(value) < 1 else 2


def gain_of(result: Result) -> Gain | None:
    """The gain of a cell with its interval and verdict, if these are known."""
    return result.gain.gain if result.gain else None
