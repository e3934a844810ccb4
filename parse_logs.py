"""Accuracies of runs: mean +- std over seeds, or tables with one row for each folder of seeds.

    python parse_logs.py checkpoint/caltech-101/resnet50_unpretrained_lr0.1 --multi
    python parse_logs.py checkpoint --table
    python parse_logs.py checkpoint/digits --table --format markdown --metric balanced_accuracy
    python parse_logs.py checkpoint --table --matrix dataset arm
    python parse_logs.py checkpoint --table --format html --output page.html

Without --table the output is that of the DistDiff repository's script; its runs are read too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from expansion.common.errors import require, run_command
from expansion.common.option_parser import OptionParser
from expansion.metrics.alike import (
    differing_runs,
    note_on_repeats,
    note_on_unlike_runs,
    notes_on_training,
)
from expansion.metrics.classification import METRICS
from expansion.metrics.run_folder import log, read_run
from expansion.metrics.runs import (
    full_names,
    mean_std,
    natural_key,
    read_report,
    without_repeats,
)
from expansion.metrics.tables import csv_text, matrix_text, notes, tables_text

STYLES = ("text", "markdown", "latex", "csv", "html")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.table:
        print_tables(options, options.metric or "last_accuracy", options.format or "text")
    else:
        print_average(options.dir, options.metric or "best_accuracy", options.multi)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="folder of a run, of its seeds, or of all runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--multi", action="store_true", help="average over DIR/*/results.yaml")
    form.add_argument("--table", action="store_true", help="compare the arms of all runs below DIR")
    format_help = "of the table (default: text); html: a page with charts and images"
    parser.add_argument("--format", choices=STYLES, help=format_help)
    parser.add_argument("--output", metavar="FILE", help="where the page of --format html goes")
    metric_help = "what is compared (default: best_accuracy; with --table: last_accuracy)"
    parser.add_argument("--metric", choices=METRICS, help=metric_help)
    columns_help = (
        "settings that get a column, such as rho K strength, or figures of the expanded sets that "
        "python -m expansion.evaluate has measured: kid coverage recognised"
    )
    parser.add_argument("--columns", nargs="+", metavar="SETTING", default=[], help=columns_help)
    matrix_help = "one cell per pair of settings, such as dataset arm: the best of each row is bold"
    parser.add_argument("--matrix", nargs=2, metavar=("ROW", "COLUMN"), help=matrix_help)
    options = parser.parse_args(arguments)
    for name in ("format", "columns", "matrix"):
        value = getattr(options, name)
        shown = value if isinstance(value, str) else " ".join(value or [])
        require(options.table or not value, f"--{name} {shown} needs --table")
    require(not (options.matrix and options.columns), "--matrix has no room for --columns")
    is_page = options.format == "html"
    require(not (options.matrix and is_page), "--matrix makes no page; leave --format html out")
    require(not is_page or bool(options.output), "--format html needs --output, such as page.html")
    require(is_page or options.output is None, f"--output {options.output} needs --format html")
    require(os.path.isdir(options.dir), f"{options.dir} is not a folder; give one that holds runs")
    return options


def print_average(root: str, metric: str, multi: bool) -> None:
    """Line for line what the DistDiff repository's script prints."""
    found = (p for p in Path(root).glob("*/results.yaml") if p.is_file())
    below = sorted((path.parent.name for path in found), key=natural_key)
    runs = []
    for folder in (os.path.join(root, name) for name in (below if multi else [""])):
        path = os.path.join(folder, "results.yaml")
        if os.path.isfile(path):
            run = read_run(folder, metric)
            accuracy = run.number(metric) if run else None
            print(f"Accuracy of {path} is {accuracy}")
            runs += [] if run is None or accuracy is None else [run]
    if runs:
        runs, repeats = without_repeats(runs)
        accuracies = [value for run in runs if (value := run.number(metric)) is not None]
        mean, std = mean_std(accuracies)
        print(f"Average  of {len(accuracies)} files is {mean:.2f} +- {std or 0:.2f}")
        differences = differing_runs(runs)
        log([note_on_repeats("the average", repeats)] if repeats else [])
        log([note_on_unlike_runs([root], differences)] if differences else [])
        return
    print("No valid performances found in the specified directory.")
    if below and not multi:
        log([f"hint: --multi averages over the {len(below)} folders of runs in {root}"])


def print_tables(options: argparse.Namespace, metric: str, style: str) -> None:
    """All runs below the folder, in the style asked for."""
    if style == "html":
        from expansion.report.page import write_page  # matplotlib and jinja2 take a while

        print("\n".join(write_page(options.dir, options.output, metric, options.columns)))
        print(f"page: {options.output}")
        return
    report = read_report(options.dir, metric)
    if options.matrix:
        print(matrix_text(report, metric, style, options.matrix), end="")
        tables = report.tables if style == "csv" else []
        log(line for table in tables for line in notes_on_training(table))
        return
    settings = full_names(options.columns, report.rows)
    if style == "csv":
        print(csv_text(report, metric, settings), end="")
        log(line for table in report.tables for line in notes(table, metric))
        log(f"unfinished: {folder}" for folder in report.unfinished)
        return
    print(tables_text(report, metric, style, settings), end="")


if __name__ == "__main__":
    run_command(main)
