"""Writes tables of arms as plain text, for GitHub, for LaTeX, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from expansion.common.errors import require
from expansion.common.tables import aligned
from expansion.metrics.alike import notes_on_training
from expansion.metrics.classification import METRICS
from expansion.metrics.run_folder import FACTS, GROUP, ORIGINAL
from expansion.metrics.runs import Comparison, Report, Row, check_same_test_set, full_names

BESIDE = "best_accuracy"  # shown in every table, because the papers report it
NO_INTERVAL = "no interval"
FIGURES = {  # further numbers of results.yaml, which get a column if some run has them
    "acceptance_rate": (
        "accepted (%)",
        "accepted: share of the generated images that self-training trusts, percent",
    ),
}
LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
START = {"text": "", "markdown": "- ", "latex": "% "}  # beginning of a line outside a table


class Column(NamedTuple):
    """A column of a table: its header, and a function that gives the cell of a row."""

    header: str
    cell: Callable[[Row], str]


def tables_text(report: Report, metric: str, style: str, settings: Sequence[str] = ()) -> str:
    """The tables of a report, with notes, unfinished runs and explanations of the columns.

    Args:
        report: All runs.
        metric: Name in METRICS.
        style: A key of START.
        settings: Settings that get a column, by their names from `full_names`.
    """
    parts = []
    for table in report.tables:
        columns = table_columns(table, metric, settings)
        lines = [[column.header for column in columns]]
        lines += [[column.cell(row) for column in columns] for row in table]
        parts.append(f"{_heading(table[0], GROUP, style)}\n\n{layout(lines, style)}\n\n")
        parts += [f"{START[style]}{line}\n\n" for line in notes(table, metric)]
    return "".join(parts) + _ending(report, metric, style)


def table_columns(table: Sequence[Row], metric: str, settings: Sequence[str]) -> list[Column]:
    """The columns of a table; arguments as in `tables_text`."""
    columns = [
        Column("arm", lambda row: row.name),
        Column("images", _images),
        Column("steps", lambda row: row.text("steps") or "-"),
        *(_setting(key) for key in settings),
        _mean_std(metric),
        Column("gain", _of(metric, lambda c: f"{c.mean:+.2f}")),
        Column("95 % interval", _of(metric, _interval)),
        Column("verdict", _of(metric, _verdict)),
    ]
    columns += [_mean_std(BESIDE)] if metric != BESIDE else []
    for key, (header, _) in FIGURES.items():
        if any(row.numbers(key) for row in table):
            columns.append(_figure(key, header))
    columns.append(Column("test images", lambda row: num_test(row) or "-"))
    columns.append(Column("seeds", lambda row: str(len(row.numbers(metric)))))
    return columns


def csv_text(report: Report, metric: str, settings: Sequence[str] = ()) -> str:
    """All tables of a report as one, with four decimals; unknown values are empty.

    Arguments are those of `tables_text`.
    """
    columns = [_fact(key) for key in (*FACTS, *settings)]
    columns += [Column("metric", lambda row: metric)]
    columns += _plain_mean_std(metric, ("mean", "std"))
    columns += [
        Column("gain", _of(metric, lambda c: _plain(c.mean))),
        Column("low", _of(metric, lambda c: _plain(c.gain.low if c.gain else None))),
        Column("high", _of(metric, lambda c: _plain(c.gain.high if c.gain else None))),
        Column("verdict", _of(metric, lambda c: c.gain.verdict if c.gain else NO_INTERVAL)),
    ]
    columns += _plain_mean_std(BESIDE, ("best_mean", "best_std")) if metric != BESIDE else []
    columns += [_plain_mean_std(key, (key, ""))[0] for key in FIGURES]
    columns += [
        Column("num_test", num_test),
        Column("n", lambda row: str(len(row.numbers(metric)))),
    ]
    return _csv(
        [[c.header for c in columns], *([c.cell(row) for c in columns] for row in report.rows)]
    )


def matrix_text(report: Report, metric: str, style: str, keys: Sequence[str]) -> str:
    """Matrices whose rows and columns are the values of two settings, such as dataset and arm.

    There is one matrix for each combination of the remaining ones of dataset, arch and start. The
    best value of each row is bold; if the columns are the datasets, the best of each column.

    Args:
        report: All runs.
        metric: Name in METRICS.
        style: A key of START, or "csv".
        keys: The settings of rows and columns; "arm" is one, too.

    Raises:
        InputError: A cell has several arms, or cells that are compared have different test sets.
    """
    # The matrices.
    rest = [key for key in GROUP if key not in keys]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in report.rows:
        groups.setdefault(tuple(map(row.text, rest)), []).append(row)
    parts = []
    for rows in groups.values():
        lines, bold = _matrix(rows, metric, keys)
        if style == "csv":
            parts.append(
                _csv(
                    [[*lines[0], *rest]] + [[*line, *map(rows[0].text, rest)] for line in lines[1:]]
                )
            )
            continue
        title = f"{_heading(rows[0], rest, style)}: {METRICS[metric].header}"
        parts.append(f"{title}\n\n{layout(lines, style, bold)}\n\n")
    if style == "csv":
        return "".join(parts)
    # What they do not show: how many images and seeds each table has, and unequal training.
    for table in report.tables:
        where = ", ".join(filter(None, map(table[0].text, GROUP[:2])))
        sizes = "/".join(dict.fromkeys(num_test(row) or "unknown" for row in table))
        seeds = "/".join(dict.fromkeys(str(len(row.numbers(metric))) for row in table))
        parts.append(f"{START[style]}{where}: test images {sizes}, seeds {seeds}\n\n")
        parts += [f"{START[style]}{note}\n\n" for note in notes_on_training(table)]
    bold_note = (
        "bold: the highest mean" if METRICS[metric].better == "higher" else "bold: the lowest"
    )
    bold_note += "; whether it is better than Original's is what --table without --matrix says"
    return "".join(parts) + _ending(report, metric, style, bold_note)


def _matrix(
    rows: Sequence[Row], metric: str, keys: Sequence[str]
) -> tuple[list[list[str]], set[tuple[int, int]]]:
    """The lines of a matrix with its header, and the places of the bold cells."""
    # One arm for each cell.
    names = full_names(keys, rows)
    cells: dict[tuple[str, ...], Row] = {}
    for row in rows:
        place = tuple(row.name if key == "arm" else row.text(key) or "-" for key in names)
        require(
            place not in cells,
            f"two arms are {' / '.join(place)}: {row.folder} and "
            f"{cells[place].folder if place in cells else ''}; give a folder with one of them, or "
            "--matrix with a setting that tells them apart",
        )
        cells[place] = row
    tops, sides = (list(dict.fromkeys(place[i] for place in cells)) for i in (1, 0))
    tops.sort(key=lambda name: name != ORIGINAL)
    lines = [[keys[0], *tops]]
    for side in sides:
        shown = (cells.get((side, top)) for top in tops)
        lines.append([side, *(_mean_std(metric).cell(row) if row else "" for row in shown)])
    # The best of each row or column, as far as the numbers shown differ.
    bold: set[tuple[int, int]] = set()
    by_column = keys[1] == "dataset"
    for name in tops if by_column else sides:
        same = {place: row for place, row in cells.items() if place[int(by_column)] == name}
        check_same_test_set(list(same.values()))
        means = {place: row.mean_std(metric)[0] for place, row in same.items()}
        means = {place: round(mean, 2) for place, mean in means.items() if mean is not None}
        if len(means) > 1:
            best = (max if METRICS[metric].better == "higher" else min)(means.values())
            chosen = (place for place, mean in means.items() if mean == best)
            bold |= {(1 + sides.index(side), 1 + tops.index(top)) for side, top in chosen}
    return lines, bold


def notes(table: Sequence[Row], metric: str) -> list[str]:
    """Notes on runs that were not trained alike, and on gains without an interval or with one seed.

    Args:
        table: Rows of a table.
        metric: Name in METRICS.
    """
    lines = notes_on_training(table)
    compared = {row.name: row.comparison(metric) for row in table}
    single = [n for n, c in compared.items() if c and c.gain and c.gain.images_only]
    if single:
        lines.append(
            f"one seed: the interval of {', '.join(single)} is over the test images alone; train "
            "more seeds for a verdict"
        )
    lone = [n for n, c in compared.items() if n not in single and c and c.gain]
    lone = [n for n in lone if compared[n].gain.num_seeds == 1]
    if lone:
        lines.append(
            f"one seed on one side: the interval of {', '.join(lone)} takes the spread over seeds "
            "from the other side"
        )
    missing: dict[str, list[str]] = {}
    for name, comparison in compared.items():
        if comparison and comparison.problem:
            missing.setdefault(comparison.problem, []).append(name)
    lines += [f"{NO_INTERVAL} for {', '.join(n)}: {why}" for why, n in missing.items()]
    return lines


def num_test(row: Row) -> str:
    """Number of test images as text; empty if it is not known."""
    if known := row.text("num_test"):
        return known
    predictions = next((run.predictions for run in row.runs if run.predictions), None)
    return str(len(predictions.labels)) if predictions else ""


def layout(
    lines: Sequence[Sequence[str]],
    style: str,
    bold: Iterable[tuple[int, int]] = (),
    beside: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """Lay out a table as aligned text, for GitHub, or for LaTeX with booktabs.

    Args:
        lines: Cells of each line; the first line is the header.
        style: A key of START.
        bold: (number of the line, number of the cell) of the bold cells, from 0.
        beside: What follows in some cells, by their places, and is never bold.
    """
    escapes: Mapping[str, Callable[[str], str]] = {
        "text": str,
        "markdown": lambda cell: cell.replace("|", "\\|"),
        "latex": _latex,
    }
    escape = escapes[style]
    mark = {"text": "*{}", "markdown": "**{}**", "latex": r"\textbf{{{}}}"}[style]
    shown = [[escape(cell) for cell in line] for line in lines]
    for i, j in bold:
        shown[i][j] = mark.format(shown[i][j])
    for (i, j), text in (beside or {}).items():
        shown[i][j] += escape(text)
    if style == "markdown":
        header, *body = (f"| {' | '.join(line)} |" for line in shown)
        return "\n".join([header, "| --- |" + " ---: |" * (len(lines[0]) - 1), *body])
    if style == "latex":
        body = [" & ".join(line) + r" \\" for line in shown]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}"
        body[:1] = [begin, r"\toprule", body[0], r"\midrule"]
        return "\n".join([*body, r"\bottomrule", r"\end{tabular}"])
    return aligned(shown)


def _latex(cell: str) -> str:
    safe = re.sub(r"[&%$#_{}\\~^]", lambda match: LATEX[match[0]], cell)
    return safe.replace(" +- ", r" $\pm$ ")


def _heading(row: Row, keys: Sequence[str], style: str) -> str:
    kinds = {"True": "pretrained", "False": "unpretrained"}
    words = [kinds.get(row.text(key), "") if key == "pretrained" else row.text(key) for key in keys]
    start = "### " if style == "markdown" else START[style]
    return start + (", ".join(filter(None, words)) or "all")


def _ending(report: Report, metric: str, style: str, *more: str) -> str:
    """The end of the tables: unfinished runs, and explanations of the columns."""
    lines = [f"unfinished: {folder}" for folder in report.unfinished]
    if not more:
        lines += [
            "images: real + generated; gain: mean minus Original's; seeds: number of runs",
            "95 % interval: of the gain, over other test images and other seeds; of 20 arms that "
            "equal Original one is called better or worse",
        ]
        lines += [
            note for key, (_, note) in FIGURES.items() if any(r.numbers(key) for r in report.rows)
        ]
    lines += [*more, "mean +- std: the population deviation over seeds (ddof 0); one run has none"]
    for key in dict.fromkeys((metric, BESIDE) if not more else (metric,)):
        lines.append(f"{METRICS[key].title}: {METRICS[key].note}")
    return "".join(f"{START[style]}{line}\n" for line in lines)


def _images(row: Row) -> str:
    return " + ".join(filter(None, map(row.text, ("num_real", "num_generated")))) or "-"


def _fact(key: str) -> Column:
    return Column(key, lambda row: row.text(key))


def _figure(key: str, header: str) -> Column:
    return Column(header, lambda row: _fixed(row.mean_std(key)[0], 1, ""))


def _setting(key: str) -> Column:
    return Column(key.rsplit(".", 1)[-1], lambda row: row.text(key) or "-")


def _mean_std(metric: str) -> Column:
    def cell(row: Row) -> str:
        mean, std = row.mean_std(metric)
        return _fixed(mean, 2, "-") + ("" if std is None else f" +- {std:.2f}")

    return Column(METRICS[metric].header, cell)


def _plain_mean_std(key: str, headers: Sequence[str]) -> list[Column]:
    def part(i: int) -> Callable[[Row], str]:
        return lambda row: _plain(row.mean_std(key)[i])

    return [Column(header, part(i)) for i, header in enumerate(headers)]


def _of(metric: str, show: Callable[[Comparison], str]) -> Callable[[Row], str]:
    """The function of a column that shows comparisons; empty for rows without an Original."""

    def cell(row: Row) -> str:
        comparison = row.comparison(metric)
        return show(comparison) if comparison else ""

    return cell


def _interval(comparison: Comparison) -> str:
    gain = comparison.gain
    return f"[{gain.low:+.2f}, {gain.high:+.2f}]" if gain else NO_INTERVAL


def _verdict(comparison: Comparison) -> str:
    if comparison.gain is None:
        return ""
    one_seed = " (1 seed)" if comparison.gain.images_only else ""
    return comparison.gain.verdict + one_seed


def _fixed(value: float | None, digits: int, unknown: str) -> str:
    return unknown if value is None else f"{value:.{digits}f}"


def _plain(value: float | None) -> str:
    """A number as CSV has it, with at most four decimals."""
    return "" if value is None else str(round(value, 4))


def _csv(lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
