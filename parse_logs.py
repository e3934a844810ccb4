"""Accuracies of runs: mean +- std over seeds, or tables with one row for each folder of seeds.

    python parse_logs.py checkpoint/caltech-101/resnet50_unpretrained_lr0.1 --multi
    python parse_logs.py checkpoint --table
    python parse_logs.py checkpoint/digits --table --format markdown --metric best_accuracy

Without --table the output is that of the DistDiff repository's script; its runs are read too.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from expansion.config import load_yaml, require
from expansion.errors import InputError, brief, is_text, run_command
from expansion.tables import aligned

METRICS = {  # key of results.yaml -> column: meaning
    "best_accuracy": "best on test: highest of all evaluations on the test set, which the papers "
    "report and which is optimistic",
    "last_accuracy": "last-epoch top-1: on the test set after the last epoch",
    "selected_accuracy": "selected top-1: on the test set when held-out training images did best",
}
ACCEPTED = "acceptance_rate"  # a column only where some run has it
ACCEPTED_NOTE = "accepted: share of the generated images that self-training trusts, percent"
LONGEST_TEXT = 200  # characters in a cell of a table
GROUP = ("dataset", "arch", "pretrained")  # equal for all rows of a table
FACTS = (*GROUP, "arm", "num_real", "num_generated", "lr", "steps")
DECISIVE = (
    "lr",
    "steps",
    "seed",
    "training_images",
    "test_images",
    "real_images",
)  # equal for arms that can be compared
# <dataset>/<arch>_{pretrained|unpretrained}[_<exp>]_lr<lr>; <exp> may hold "/".
RUN_FOLDER = re.compile(r"([^/]+)/([^/]+?)_(un)?pretrained(?:_(.+))?_lr(\d*\.?\d+(?:e[+-]?\d+)?)$")


@dataclass
class Row:
    """The runs of one arm; `original` is the row it is compared with."""

    folder: str
    runs: list[dict[str, Any]]
    name: str = ""
    original: Row | None = None

    def text(self, key: str) -> str:
        """The values of `key`, joined by "/" where runs differ; "" where none is known."""
        values = [run[key] for run in self.runs if key in run]
        shown = {f"{value:g}" if isinstance(value, float) else str(value) for value in values}
        return "/".join(sorted(shown, key=natural_key))

    def accuracies(self, metric: str) -> list[float]:
        return [run[metric] for run in self.runs if metric in run]

    def numbers(self, columns: Sequence[str]) -> list[float | None]:
        """Mean, std, gain over Original; then mean and std of further metrics. None: not known."""
        stats = [mean_std(self.accuracies(metric)) for metric in columns]
        base = mean_std(self.original.accuracies(columns[0]))[0] if self.original else None
        gain = None if base is None or stats[0][0] is None else stats[0][0] - base
        return [*stats[0], gain, *(number for pair in stats[1:] for number in pair)]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.table:
        print_tables(options.dir, options.metric or "last_accuracy", options.format or "text")
    else:
        print_average(options.dir, options.metric or "best_accuracy", options.multi)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("dir", metavar="DIR", help="folder of a run, of its seeds, or of all runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--multi", action="store_true", help="average over DIR/*/results.yaml")
    form.add_argument("--table", action="store_true", help="compare the arms of all runs below DIR")
    styles = ("text", "markdown", "latex", "csv")
    parser.add_argument("--format", choices=styles, help="of the table (default: text)")
    metric_help = "accuracy, percent (default: best_accuracy; with --table: last_accuracy); "
    metric_help += "selected_accuracy is there in runs with --val_fraction"
    parser.add_argument("--metric", choices=METRICS, help=metric_help)
    options = parser.parse_args(arguments)
    require(options.table or not options.format, f"--format {options.format} needs --table")
    require(os.path.isdir(options.dir), f"{options.dir} is not a folder; give one that holds runs")
    return options


def print_average(root: str, metric: str, multi: bool) -> None:
    """Line for line what the DistDiff repository's script prints."""
    found = (p for p in Path(root).glob("*/results.yaml") if p.is_file())
    below = sorted((path.parent.name for path in found), key=natural_key)
    accuracies = []
    for path in (os.path.join(root, name, "results.yaml") for name in (below if multi else [""])):
        if os.path.isfile(path):
            accuracy = read_results(path, metric).get(metric)
            print(f"Accuracy of {path} is {accuracy}")
            accuracies += [] if accuracy is None else [accuracy]
    if accuracies:
        mean, std = mean_std(accuracies)
        print(f"Average  of {len(accuracies)} files is {mean:.2f} +- {std or 0:.2f}")
        return
    print("No valid performances found in the specified directory.")
    if below and not multi:
        log([f"hint: --multi averages over the {len(below)} folders of runs in {root}"])


def print_tables(root: str, metric: str, style: str) -> None:
    """One table per dataset, arch and start; then unfinished runs and what the columns are."""
    found = list(folders_below(root))
    finished = {folder for folder, files in found if "results.yaml" in files}
    begun = {folder for folder, files in found if "options.yaml" in files}
    end = [f"unfinished: {folder}" for folder in sorted(begun - finished, key=natural_key)]
    tables = read_tables(sorted(finished, key=natural_key), root, metric)
    columns = list(dict.fromkeys((metric, "best_accuracy")))
    if not tables:
        log(end)
        raise InputError(f"no readable results.yaml below {root}; run train_original.py first")
    if style == "csv":
        write_csv([row for table in tables for row in table], columns)
        log([*(line for table in tables for line in notes(table)), *end])
        return
    start = {"text": "", "markdown": "- ", "latex": "% "}[style]
    for table in tables:
        dataset, arch, pretrained = map(table[0].text, GROUP)
        kind = {"True": ", pretrained", "False": ", unpretrained"}.get(pretrained, "")
        print(f"{'### ' if style == 'markdown' else start}{dataset}, {arch}{kind}\n")
        print(layout(cells(table, columns), style), end="\n\n")
        print("".join(f"{start}{line}\n\n" for line in notes(table)), end="")
    end += ["images: real + generated; gain: mean minus Original's; n: number of runs (seeds)"]
    end += ["mean +- std: the population deviation over seeds (ddof 0); one run has none"]
    if any(row.accuracies(ACCEPTED) for table in tables for row in table):
        end += [ACCEPTED_NOTE]
    print("\n".join(start + line for line in [*end, *(METRICS[key] for key in columns)]))


def folders_below(root: str) -> Iterable[tuple[str, list[str]]]:
    """(folder, names of its files), through links but into no folder twice."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
        else:
            seen.add(real)
            yield folder, files


def read_tables(run_dirs: Iterable[str], root: str, metric: str) -> list[list[Row]]:
    """The rows of each table: Original first, then in the order of `run_dirs`."""
    rows: dict[str, Row] = {}
    for run_dir in run_dirs:
        results = read_results(os.path.join(run_dir, "results.yaml"), metric)
        folder, seed_name = os.path.split(os.path.abspath(run_dir))
        if results:
            known = {key: value for key, value in results.items() if value is not None}
            run = {"seed": seed_name.removeprefix("seed"), **facts_of_path(folder, root), **known}
            rows.setdefault(folder, Row(folder, [])).runs.append(run)
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows.values():
        tables.setdefault(tuple(map(row.text, GROUP)), []).append(row)
    for table in tables.values():
        table.sort(key=lambda row: row.text("arm") != "Original")
        compare(table, root)
    return list(tables.values())


def facts_of_path(folder: str, root: str) -> dict[str, Any]:
    """What the folder names say, for runs whose results.yaml does not."""
    # From `root` outwards, because a folder above it may be called my_pretrained_models.
    top = Path(os.path.abspath(root))
    for start in (top, *top.parents):
        if found := RUN_FOLDER.search(Path(os.path.relpath(folder, start)).as_posix()):
            dataset, arch, un, exp, lr = found.groups()
            facts = {"dataset": dataset, "arch": arch, "pretrained": un is None}
            return {**facts, "arm": exp or "Original", "lr": float(lr)}
    dataset_dir, arm = os.path.split(folder)
    return {"dataset": os.path.basename(dataset_dir), "arch": "unknown arch", "arm": arm}


def compare(table: Sequence[Row], root: str) -> None:
    """Give each row its Original, and a name: the arm, where needed with lr and folder."""
    originals = [row for row in table if row.text("arm") == "Original"]
    for row in table:
        arm, lr = row.text("arm"), row.text("lr")
        found = [] if arm == "Original" else originals
        for key in ("lr", "training_images", "real_images", "steps"):  # of several the one with the same settings
            found = [o for o in found if o.text(key) == row.text(key)] if len(found) > 1 else found
        row.original = found[0] if len(found) == 1 else None
        lrs = [other.text("lr") for other in table if other.text("arm") == arm]
        row.name = arm + (f", lr {lr or 'unknown'}" if len(set(lrs)) > 1 else "")
        row.name += f", {os.path.relpath(row.folder, root)}" if lrs.count(lr) > 1 else ""


def notes(table: Sequence[Row]) -> list[str]:
    """At most one line: which arms were not trained alike."""
    unequal = []
    for row in table:
        other = row.original or table[0]
        pairs = {key: (row.text(key), other.text(key)) for key in DECISIVE}
        keys = [key for key, (mine, its) in pairs.items() if mine and its and mine != its]
        if keys and row.text("arm") != "Original":
            unequal.append(f"{row.name} differs from {other.name} in {', '.join(keys)}")
    line = f"note: {'; '.join(unequal)}. Arms are only comparable at equal steps."
    return [line] if unequal else []


def cells(table: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    """Header and rows as text."""
    first, *others = (METRICS[key].split(":")[0] + " (%)" for key in columns)
    accepts = any(row.accuracies(ACCEPTED) for row in table)
    others += ["accepted (%)"] if accepts else []
    lines = [["arm", "images", "steps", first, "gain", *others, "n"]]
    for row in table:
        shown = []
        for mean, std in (mean_std(row.accuracies(key)) for key in columns):
            text = "-" if mean is None else f"{mean:.2f}"
            shown.append(text if std is None else f"{text} +- {std:.2f}")
        gain = row.numbers(columns)[2]
        shown.insert(1, "" if gain is None else f"{gain:+.2f}")
        if accepts:
            mean, _ = mean_std(row.accuracies(ACCEPTED))
            shown.append("" if mean is None else f"{mean:.1f}")
        images = " + ".join(filter(None, map(row.text, ("num_real", "num_generated"))))
        n = len(row.accuracies(columns[0]))
        lines.append([row.name, images or "-", row.text("steps") or "-", *shown, str(n)])
    return lines


def layout(lines: Sequence[Sequence[str]], style: str) -> str:
    """A table as aligned text, for GitHub, or for LaTeX with booktabs."""
    if style == "markdown":
        header, *body = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([header, "| --- |" + " ---: |" * (len(lines[0]) - 1), *body])
    if style == "latex":
        safe = ([re.sub(r"([&%$#_{}])", r"\\\1", cell) for cell in line] for line in lines)
        body = [" & ".join(line).replace(" +- ", r" $\pm$ ") + r" \\" for line in safe]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}"
        body[:1] = [begin, r"\toprule", body[0], r"\midrule"]
        return "\n".join([*body, r"\bottomrule", r"\end{tabular}"])
    return aligned(lines)


def write_csv(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """All tables as one; four decimals, empty where not known."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    best = ["best_mean", "best_std"] if len(columns) > 1 else []
    writer.writerow([*FACTS, "metric", "mean", "std", "gain", *best, ACCEPTED, "n"])
    for row in rows:
        accepted, _ = mean_std(row.accuracies(ACCEPTED))
        numbers = [*row.numbers(columns), accepted]
        numbers = ["" if n is None else round(n, 4) for n in numbers]
        n = len(row.accuracies(columns[0]))
        writer.writerow([*map(row.text, FACTS), columns[0], *numbers, n])


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation; one value has none."""
    # Population (ddof 0), as numpy.std in the DistDiff repository's script.
    return fmean(values) if values else None, pstdev(values) if len(values) > 1 else None


def read_results(path: str, metric: str) -> dict[str, Any]:
    """The content of a results.yaml; accuracies that are no numbers become None."""
    try:
        require(os.path.isfile(path), f"{path} is no file")
        results = dict(load_yaml(path).values)
    except InputError as error:
        log([f"warning: {path} is not counted: {error}"])
        return {}
    for key in set(results) & {*FACTS, *DECISIVE}:
        if not is_plain(results[key]):
            log([f"warning: {path}: {key} is {brief(results[key])}, which is no fact of a run"])
            del results[key]
    for key in (*METRICS, ACCEPTED):
        value = results.get(key)
        valid = type(value) in (int, float) and abs(value) <= 100
        results[key] = value if valid else None
    if results[metric] is None:
        log([f"warning: {path} is not counted: it holds no number as {metric}"])
    return results


def is_plain(value: Any) -> bool:
    """Whether a table can show the value: text, or a number of usual size."""
    if isinstance(value, str):
        return is_text(value) and value.isprintable() and len(value) < LONGEST_TEXT
    return value is None or (isinstance(value, int | float) and abs(value) < 1e15)


def natural_key(name: str) -> list[Any]:
    """Sorts seed2 before seed10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def log(lines: Iterable[str]) -> None:
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
