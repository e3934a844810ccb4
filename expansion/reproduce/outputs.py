"""Results as text, Markdown, LaTeX with booktabs, CSV, and one page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from expansion.common.files import write_atomic
from expansion.metrics.tables import START, layout
from expansion.report.page import render
from expansion.reproduce.papers import Published
from expansion.reproduce.results import (
    MISSING,
    Measured,
    Result,
    TableResults,
    digits_of,
    gain_of,
)
from expansion.reproduce.schema import LOWER_IS_BETTER, MEASURES

TEMPLATE = "reproduce.html.j2"
HEADER = (
    "row", "column", "measured", "95 % interval", "best epoch", "published", "difference",
    "gain", "its 95 % interval", "verdict", "published gain", "seeds",
)  # fmt: skip
CSV_HEADER = (
    "table", "row", "column", "measure", "mean", "std", "low", "high", "best_epoch", "way",
    "published", "published_std", "difference", "gain", "gain_low", "gain_high", "verdict",
    "published_gain", "n", "problem",
)  # fmt: skip
LEGEND = (
    "measured: mean +- population deviation over the seeds, at the last epoch, and its 95 % "
    "interval over other {others}",
    "difference: measured minus published; where the paper reports the best epoch on the test "
    "images, that of the best epoch",
    "gain: over the row {reference} of the same column, at the last epoch, with its interval",
)
NO_DIFFERENCE = (
    "published: of other images, networks and devices than those of this scale, so that no "
    "difference is shown; gains may be compared"
)
LESS = "; less is better: a gain below 0 is an improvement"
LATEX_START = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
"""
LATEX_TABLE = r"""\begin{{table}}[ht]
\caption{{{caption}}}
\centering
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
\input{{{name}}}}}
\end{{table}}
\clearpage
"""


def write_outputs(found: Sequence[TableResults], folder: Path, heading: str) -> Path:
    """Write all files of tables; returns the page.

    Args:
        found: The tables.
        folder: Gets tables/<paper>/<table>.{md,tex,csv}, tables.tex and page.html.
        heading: What the page says of the scale.
    """
    latex = [LATEX_START]
    for results in found:
        path = folder / "tables" / f"{results.table.name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"# {_title(results)}\n\n{report(results, 'markdown')}")
        write_atomic(path.with_suffix(".tex"), grid(results, "latex") + "\n")
        write_atomic(path.with_suffix(".csv"), _csv(results))
        name = path.with_suffix("").relative_to(folder).as_posix()
        caption = layout([[_title(results)]], "latex").splitlines()[2].removesuffix(r" \\")
        latex.append(LATEX_TABLE.format(caption=caption, name=name))
    write_atomic(folder / "tables.tex", "".join([*latex, "\\end{document}\n"]))
    page = folder / "page.html"
    parts = [_page_part(results) for results in found]
    html = render(TEMPLATE, Path(__file__).parent, heading=heading, tables=parts)
    write_atomic(page, html)
    return page


def grid(results: TableResults, style: str) -> str:
    """The table as the paper has it: measured, and in brackets published; the best is bold."""
    lines, bold, beside = [[results.table.file.corner or "", *results.columns]], set(), {}
    for i, row in enumerate(results.rows, 1):
        found = [results.results.get((row, column)) for column in results.columns]
        lines.append([row, *map(_grid_cell, found)])
        for j, result in enumerate(found, 1):
            published = _published(result.published) if result else ""
            beside[i, j] = f" ({published})" if published else ""
            if row in results.best_rows(results.columns[j - 1]):
                bold.add((i, j))
    return layout(lines, style, bold, beside)


def report(results: TableResults, style: str) -> str:
    """Everything about a table: the grid, each cell with its intervals, and the notes."""
    if results.problem:
        return f"{results.problem}\n"
    start = START[style]
    lines = [list(HEADER), *(_line(each) for each in results.results.values())]
    keep = [i for i in range(len(HEADER)) if any(line[i] for line in lines[1:])]
    detailed = layout([[line[i] for i in keep] for line in lines], style)
    parts = [grid(results, style), detailed, "".join(f"{start}{n}\n" for n in notes(results))]
    return "\n\n".join(parts)


def notes(results: TableResults) -> list[str]:
    """What a reader must know: columns, order, settings that the paper leaves open, the scale."""
    table, found = results.table, list(results.results.values())
    lines = _problems(found) + _legend(results) + _orders(results)
    for name in dict.fromkeys(each.cell.spec.measure for each in found):
        less = LESS if name in LOWER_IS_BETTER else ""
        lines += [f"{name}: {MEASURES[name]}{less}"] if name != "accuracy" else []
    chosen = {**(table.paper.file.chosen or {}), **(table.file.chosen or {})}
    lines += [f"open in the paper: {setting}: {why}" for setting, why in chosen.items()]
    lines += table.file.notes
    if results.notes:
        lines.append("at this scale: " + "; ".join(results.notes))
    return lines


def _problems(found: Sequence[Result]) -> list[str]:
    """Why cells have no value, or no interval: a line for each reason, with its cells."""
    cells: dict[tuple[str, str], list[str]] = {}
    for result in found:
        measured, gain = result.measured, result.gain
        reasons = {
            _state(result): "" if measured or result.problem == MISSING else result.problem,
            "no interval": measured.no_interval if measured else "",
            "no interval of the gain": gain.problem if gain else "",
        }
        for title, reason in reasons.items():
            if reason:
                cell = f"{result.cell.row}, {result.cell.column}"
                cells.setdefault((title, reason), []).append(cell)
    return [f"{title}: {'; '.join(each)}: {reason}" for (title, reason), each in cells.items()]


def _legend(results: TableResults) -> list[str]:
    """What the columns are, of those that the table has."""
    found, reference = list(results.results.values()), results.table.file.reference
    measured = [each.measured for each in found if each.measured]
    one_seed = measured and all(each.count == 1 for each in measured)
    measured_title, difference, gain = LEGEND
    others = "test images; another seed may differ more" if one_seed else "seeds and test images"
    lines = [measured_title.format(others=others)]
    if any(each.difference is not None for each in found):
        lines.append(difference)
    elif any(each.published and each.measured for each in found):
        lines.append(NO_DIFFERENCE)
    return lines + ([gain.format(reference=reference)] if reference else [])


def _orders(results: TableResults) -> list[str]:
    lines = []
    for column in results.columns:
        same, pairs = results.order(column)
        if pairs:
            lines.append(f"order, {column}: {same} of {pairs} pairs of rows stand as published")
    return lines


def _title(results: TableResults) -> str:
    return (
        f"{results.table.paper.file.title}, {results.table.file.item}: {results.table.file.title}"
    )


def _grid_cell(result: Result | None) -> str:
    """The measured part of a cell."""
    if result is None:
        return ""
    if result.measured is None:
        return "failed" if result.failed else "-"
    return _mean_std(result.measured)


def _state(result: Result) -> str:
    """What stands in the place of a value; the reason stands below the table."""
    if result.failed:
        return "failed"
    return "left out" if result.problem != MISSING else MISSING


def _line(result: Result) -> list[str]:
    measured, gain = result.measured, gain_of(result)
    cell, published = [result.cell.row, result.cell.column], _published(result.published)
    published_digits = digits_of(result.published.value) if result.published else 2
    published_gain = _signed(result.published_gain, published_digits)
    if measured is None:
        return [*cell, _state(result), "", "", published, *[""] * 4, published_gain, ""]
    digits = measured.digits
    way = f" ({measured.label})" if measured.label else ""
    return [
        *cell,
        _mean_std(measured) + way,
        _interval(measured.interval, ""),
        "" if measured.best is None else f"{measured.best:.2f}",
        published,
        _signed(result.difference, digits),
        _signed(result.gain.mean if result.gain else None, digits),
        _interval((gain.low, gain.high), "+") if gain else "",
        gain.verdict + (" (1 seed)" if gain.images_only else "") if gain else "",
        published_gain,
        str(measured.count),
    ]


def _csv(results: TableResults) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for result in results.results.values():
        writer.writerow(_csv_line(results, result))
    return text.getvalue()


def _csv_line(results: TableResults, result: Result) -> list[str]:
    cell, measured, gain = result.cell, result.measured, gain_of(result)
    low, high = (measured.interval if measured else None) or (None, None)
    return [
        results.table.name,
        cell.row,
        cell.column,
        cell.spec.measure,
        *(_plain(getattr(measured, name, None)) for name in ("mean", "deviation")),
        _plain(low),
        _plain(high),
        _plain(getattr(measured, "best", None)),
        measured.label if measured else "",
        *(_plain(getattr(result.published, name, None)) for name in ("value", "deviation")),
        _plain(result.difference),
        _plain(getattr(result.gain, "mean", None)),
        *(_plain(getattr(gain, name, None)) for name in ("low", "high")),
        gain.verdict if gain else "",
        _plain(result.published_gain),
        str(measured.count if measured else 0),
        result.problem,
    ]


def _page_part(results: TableResults) -> dict[str, object]:
    """What the page shows of a table."""
    lines = [] if results.problem else [_line(each) for each in results.results.values()]
    rows = []
    for row in results.rows:
        cells = [results.results.get((row, column)) for column in results.columns]
        rows.append((row, [_page_cell(results, each) for each in cells]))
    return {
        "title": _title(results),
        "name": results.table.name,
        "problem": results.problem,
        "corner": results.table.file.corner,
        "columns": results.columns,
        "rows": rows,
        "header": HEADER,
        "lines": lines,
        "notes": notes(results) if results.results else [],
    }


def _page_cell(results: TableResults, result: Result | None) -> dict[str, object] | None:
    if result is None:
        return None
    return {
        "measured": _mean_std(result.measured) if result.measured else "",
        "problem": result.problem,
        "failed": result.failed,
        "published": _published(result.published),
        "best": result.cell.row in results.best_rows(result.cell.column),
        "difference": _signed(result.difference, result.measured.digits if result.measured else 2),
    }


def _mean_std(measured: Measured) -> str:
    digits, deviation = measured.digits, measured.deviation
    text = f"{measured.mean:.{digits}f}"
    return text if deviation is None else f"{text} +- {deviation:.{digits}f}"


def _published(published: Published | None) -> str:
    if published is None:
        return ""
    deviation = "" if published.deviation is None else f" +- {published.deviation:g}"
    return f"{published.value:g}{deviation}"


def _interval(ends: tuple[float, float] | None, sign: str) -> str:
    return f"[{ends[0]:{sign}.2f}, {ends[1]:{sign}.2f}]" if ends else ""


def _signed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def _plain(value: float | None) -> str:
    return "" if value is None else str(round(value, 4))
