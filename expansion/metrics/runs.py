"""Run folders below a root, read into rows (arms) and tables.

    <root>/**/seed<k>/results.yaml     settings and results of a finished run
    <root>/**/seed<k>/options.yaml     alone: of an unfinished one
    <root>/**/seed<k>/predictions.npz  what it says about every test image; older runs have none

Runs of the released DistDiff code are read too: what their results.yaml lacks comes from the path.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from expansion.common.config import load_yaml
from expansion.common.errors import InputError, brief, is_text, require, unknown_name
from expansion.metrics.classification import METRICS

if TYPE_CHECKING:
    from expansion.metrics.comparison import Gain
    from expansion.metrics.predictions import Predictions

ORIGINAL = "Original"  # the arm that others are compared with
LONGEST_TEXT = 200  # characters in a cell of a table
LARGEST_NUMBER = 1e15
GROUP = ("dataset", "arch", "pretrained")  # equal for all rows of a table
FACTS = (*GROUP, "arm", "num_real", "num_generated", "lr", "steps")
DECISIVE = ("lr", "steps", "seed", "training_images", "real_images")  # of arms trained alike
# What says of which images a test set is; older versions wrote the last, of training images too.
TEST_SET = ("test_images", "num_test", "real_images")
# <dataset>/<arch>_{pretrained|unpretrained}[_<exp>]_lr<lr>; <exp> may hold "/".
RUN_FOLDER = re.compile(r"([^/]+)/([^/]+?)_(un)?pretrained(?:_(.+))?_lr(\d*\.?\d+(?:e[+-]?\d+)?)$")


@dataclass(eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: Of the run.
        facts: Settings and results; of a group of settings "group.name".
    """

    folder: str
    facts: dict[str, Any]

    def number(self, key: str) -> float | None:
        """A metric, or any number of results.yaml; None where it is not known."""
        value = self.facts.get(key)
        if type(value) in (int, float) and abs(value) <= LARGEST_NUMBER:
            return value
        measure = METRICS[key].of_predictions if key in METRICS else None
        if measure is None or self.predictions is None:
            return None
        value = float(measure(self.predictions))
        return value if value == value else None  # NaN: undefined on this test set

    @cached_property
    def predictions(self) -> Predictions | None:
        """What was predicted of the test images; None in a run of an older version."""
        path = Path(self.folder, "predictions.npz")
        if not path.is_file():
            return None
        from expansion.metrics.predictions import Predictions

        try:
            return Predictions.load(path)
        except InputError as error:
            log([f"warning: {error}"])
            return None


@dataclass(frozen=True)
class Comparison:
    """A row against its Original.

    Attributes:
        mean: Difference of the means.
        gain: With interval and verdict; None: `problem` says why there is none.
    """

    mean: float
    gain: Gain | None
    problem: str = ""


@dataclass(eq=False)
class Row:
    """The runs of one arm, by seed; `original` is the row it is compared with."""

    folder: str
    runs: list[Run]
    name: str = ""
    original: Row | None = None
    _comparisons: dict[str, Comparison | None] = field(default_factory=dict)

    def text(self, key: str) -> str:
        """The values of `key`, joined by "/" where runs differ; "" where none is known."""
        values = [run.facts[key] for run in self.runs if run.facts.get(key) is not None]
        shown = {f"{value:g}" if isinstance(value, float) else str(value) for value in values}
        return "/".join(sorted(shown, key=natural_key))

    def numbers(self, key: str) -> list[float]:
        """Those of the runs that know it; see `Run.number`."""
        return [value for value in (run.number(key) for run in self.runs) if value is not None]

    def mean_std(self, key: str) -> tuple[float | None, float | None]:
        """Mean and population standard deviation over the runs."""
        return mean_std(self.numbers(key))

    def seeds(self) -> list[str]:
        return [str(run.facts.get("seed")) for run in self.runs]

    def comparison(self, metric: str) -> Comparison | None:
        """Against the Original; None without one, or where a mean is not known."""
        if metric not in self._comparisons:
            self._comparisons[metric] = self._compared(metric)
        return self._comparisons[metric]

    def _compared(self, metric: str) -> Comparison | None:
        if self.original is None:
            return None
        means = [row.mean_std(metric)[0] for row in (self, self.original)]
        if None in means:
            return None
        difference = means[0] - means[1]
        problem = self.missing_for(metric) or self.original.missing_for(metric)
        if problem:
            return Comparison(difference, None, problem)
        from expansion.metrics.comparison import compare

        of_runs = [[run.predictions for run in row.runs] for row in (self, self.original)]
        try:
            gain = compare(*of_runs, metric, paired=self.seeds() == self.original.seeds())
        except InputError as error:
            return Comparison(difference, None, str(error))
        if abs(gain.mean - difference) > 0.005:
            problem = f"results.yaml has {difference:+.2f}, predictions.npz {gain.mean:+.2f}"
            return Comparison(difference, None, problem)
        return Comparison(difference, gain)

    def missing_for(self, metric: str) -> str:
        """Why there is no interval with these runs; "" if nothing is missing."""
        if METRICS[metric].of_predictions is None:
            return f"{metric} is not that of the last step, whose predictions are kept"
        absent = [run.folder for run in self.runs if run.predictions is None]
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        return f"no predictions.npz in {absent[0]}{more}" if absent else ""


@dataclass(frozen=True)
class Report:
    """All runs below a folder.

    Attributes:
        tables: One per dataset, arch and start; Original first.
        unfinished: Folders.
    """

    tables: list[list[Row]]
    unfinished: list[str]

    @property
    def rows(self) -> list[Row]:
        return [row for table in self.tables for row in table]


def read_report(root: str, metric: str) -> Report:
    """Find and read all runs below `root`.

    Args:
        metric: Name in METRICS; runs that do not know it are named in a warning.

    Raises:
        InputError: No run is finished, or runs of different test sets meet in a table.
    """
    require(os.path.isdir(root), f"{root} is not a folder; give one that holds runs")
    found = list(folders_below(root))
    finished = {folder for folder, files in found if "results.yaml" in files}
    begun = {folder for folder, files in found if "options.yaml" in files}
    report = Report(
        read_tables(sorted(finished, key=natural_key), root, metric),
        sorted(begun - finished, key=natural_key),
    )
    if not report.tables:
        log(f"unfinished: {folder}" for folder in report.unfinished)
        raise InputError(f"no readable results.yaml below {root}; run train_original.py first")
    for table in report.tables:
        check_same_test_set(table)
    return report


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
        run = read_run(run_dir, metric)
        folder, seed_name = os.path.split(os.path.abspath(run_dir))
        if run is not None:
            seed = seed_name.removeprefix("seed")
            facts = {"seed": seed, **facts_of_path(folder, root), **run.facts}
            run = dataclasses.replace(run, facts=facts)
            rows.setdefault(folder, Row(folder, [])).runs.append(run)
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows.values():
        row.runs.sort(key=lambda run: natural_key(str(run.facts["seed"])))
        tables.setdefault(tuple(map(row.text, GROUP)), []).append(row)
    for table in tables.values():
        table.sort(key=lambda row: row.text("arm") != ORIGINAL)
        name_and_pair(table, root)
    return list(tables.values())


def facts_of_path(folder: str, root: str) -> dict[str, Any]:
    """What the folder names say, for runs whose results.yaml does not."""
    # From `root` outwards, because a folder above it may be called my_pretrained_models.
    top = Path(os.path.abspath(root))
    for start in (top, *top.parents):
        if found := RUN_FOLDER.search(Path(os.path.relpath(folder, start)).as_posix()):
            dataset, arch, un, exp, lr = found.groups()
            facts = {"dataset": dataset, "arch": arch, "pretrained": un is None}
            return {**facts, "arm": exp or ORIGINAL, "lr": float(lr)}
    dataset_dir, arm = os.path.split(folder)
    return {"dataset": os.path.basename(dataset_dir), "arch": "unknown arch", "arm": arm}


def name_and_pair(table: Sequence[Row], root: str) -> None:
    """Give each row its Original, and a name: the arm, where needed with lr and folder."""
    originals = [row for row in table if row.text("arm") == ORIGINAL]
    for row in table:
        arm, lr = row.text("arm"), row.text("lr")
        found = [] if arm == ORIGINAL else originals
        # Of several the one that was trained alike.
        for key in ("lr", "training_images", "real_images", "steps"):
            alike = [other for other in found if other.text(key) == row.text(key)]
            found = alike if len(found) > 1 else found
        row.original = found[0] if len(found) == 1 else None
        lrs = [other.text("lr") for other in table if other.text("arm") == arm]
        row.name = arm + (f", lr {lr or 'unknown'}" if len(set(lrs)) > 1 else "")
        row.name += f", {os.path.relpath(row.folder, root)}" if lrs.count(lr) > 1 else ""


def check_same_test_set(rows: Sequence[Row]) -> None:
    """Raise InputError if two of the runs are known to be tested on different images."""
    for key in TEST_SET:
        known: dict[str, list[str]] = {}
        for run in (run for row in rows for run in row.runs):
            if run.facts.get(key) is not None:
                known.setdefault(str(run.facts[key]), []).append(run.folder)
        if len(known) > 1:
            sets = "; ".join(
                f"{folders[0]}{f' and {len(folders) - 1} more' if folders[1:] else ''} "
                f"({key}: {value})"
                for value, folders in known.items()
            )
            raise InputError(
                f"runs of different test sets cannot stand in one table: {sets}; give their "
                "folders separately, or train one of the datasets under another --name"
            )


def differing(rows: Sequence[Row]) -> list[str]:
    """Short names of the settings that not all rows share."""
    keys = dict.fromkeys(key for row in rows for run in row.runs for key in run.facts)
    texts = {key: {row.text(key) for row in rows} for key in keys if key not in METRICS}
    several = [key for key, values in texts.items() if len(values) > 1]
    return list(dict.fromkeys(key.rsplit(".", 1)[-1] for key in several))


def full_names(settings: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The settings' names in the facts of the runs: "rho" may be called "expanded_set.rho".

    Raises:
        InputError: No run has such a setting, or two settings end in the name.
    """
    keys = list(dict.fromkeys(key for row in rows for run in row.runs for key in run.facts))
    found = []
    for name in settings:
        ending = [key for key in keys if key.rsplit(".", 1)[-1] == name]
        exact = [key for key in keys if key == name]
        if not (exact or ending):
            raise unknown_name("setting", name, differing(rows) or keys)
        require(
            bool(exact) or len(ending) == 1,
            f"{name} may be {' or '.join(ending)}; give one of these names in full",
        )
        found.append((exact or ending)[0])
    return found


def read_run(run_dir: str | Path, metric: str) -> Run | None:
    """The run of a folder; None, and a warning, if its results.yaml cannot be read."""
    path = os.path.join(run_dir, "results.yaml")
    try:
        require(os.path.isfile(path), f"{path} is no file")
        results = load_yaml(path).values
    except InputError as error:
        log([f"warning: {path} is not counted: {error}"])
        return None
    facts = {key: value for key, value in flat(results).items() if is_plain(value)}
    for key in results:
        if key in {*FACTS, *DECISIVE, *TEST_SET} and key not in facts:
            log([f"warning: {path}: {key} is {brief(results[key])}, which is no fact of a run"])
    run = Run(str(run_dir), {key: value for key, value in facts.items() if value is not None})
    if run.number(metric) is None:
        log([f"warning: {path} is not counted: it holds no number as {metric}"])
    return run


def flat(values: Mapping[Any, Any], start: str = "") -> dict[str, Any]:
    """Settings of groups as "group.name"; lists as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{start}{key}" if isinstance(key, str) else ""
        if not is_plain(name) or not name:
            continue
        if isinstance(value, dict) and not start:
            found |= flat(value, f"{name}.")
        elif isinstance(value, list) and len(value) < LONGEST_TEXT and all(map(is_plain, value)):
            found[name] = " ".join(map(str, value))
        else:
            found[name] = value
    return found


def is_plain(value: Any) -> bool:
    """Whether a table can show the value: text, or a number of usual size."""
    if isinstance(value, str):
        return is_text(value) and value.isprintable() and len(value) < LONGEST_TEXT
    return value is None or (isinstance(value, int | float) and abs(value) < LARGEST_NUMBER)


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation; one value has none."""
    # Population (ddof 0), as numpy.std in the DistDiff repository's script.
    return fmean(values) if values else None, pstdev(values) if len(values) > 1 else None


def natural_key(name: str) -> list[Any]:
    """Sorts seed2 before seed10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def log(lines: Iterable[str]) -> None:
    """Write lines to stderr."""
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
