"""Reads the run folders below a root into rows, one for each arm, and tables.

    <root>/**/seed<k>/results.yaml     settings and results of a finished run
    <root>/**/seed<k>/options.yaml     without results.yaml: the run is unfinished
    <root>/**/seed<k>/predictions.npz  predictions for all test images; older runs have none

Runs of the released DistDiff code are read too; settings that their results.yaml lacks are taken
from the path.
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
from expansion.metrics.set_figures import figures_of_set

if TYPE_CHECKING:
    from expansion.metrics.comparison import Gain
    from expansion.metrics.predictions import Predictions

ORIGINAL = "Original"  # the arm that others are compared with
LONGEST_TEXT = 200  # characters that a table can show in a cell
LARGEST_NUMBER = 1e15
GROUP = ("dataset", "arch", "pretrained")  # settings that all rows of a table have in common
FACTS = (*GROUP, "arm", "num_real", "num_generated", "lr", "steps")
DECISIVE = ("lr", "steps", "seed", "training_images", "real_images")  # equal if trained alike
# Facts that identify a test set; older versions wrote "real_images", with training images in it.
TEST_SET = ("test_images", "num_test", "real_images")
# <dataset>/<arch>_{pretrained|unpretrained}[_<exp>]_lr<lr>; <exp> may hold "/".
RUN_FOLDER = re.compile(r"([^/]+)/([^/]+?)_(un)?pretrained(?:_(.+))?_lr(\d*\.?\d+(?:e[+-]?\d+)?)$")


@dataclass(eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: The run folder.
        facts: Settings and results by name; a setting in a group is called "group.name".
    """

    folder: str
    facts: dict[str, Any]

    def number(self, key: str) -> float | None:
        """A metric, or any number of results.yaml, by name; None if it is not known."""
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
        """The predictions for the test images; None in a run of an older version."""
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
    """A row in comparison with its Original.

    Attributes:
        mean: Difference of the two means over the runs.
        gain: The same with interval and verdict, if these can be computed.
        problem: Why they cannot be computed.
    """

    mean: float
    gain: Gain | None
    problem: str = ""


@dataclass(eq=False)
class Row:
    """The runs of one arm.

    Attributes:
        folder: The folder that holds the run folders.
        runs: The runs in the order of their seeds.
        name: What tables call the arm.
        original: The row that it is compared with, if there is one.
    """

    folder: str
    runs: list[Run]
    name: str = ""
    original: Row | None = None
    _comparisons: dict[str, Comparison | None] = field(default_factory=dict)

    def text(self, key: str) -> str:
        """The value of a fact as text; several are joined by "/", and without any it is empty."""
        values = [run.facts[key] for run in self.runs if run.facts.get(key) is not None]
        shown = {f"{value:g}" if isinstance(value, float) else str(value) for value in values}
        return "/".join(sorted(shown, key=natural_key))

    def numbers(self, key: str) -> list[float]:
        """The values of a metric, or of another number, in the runs that know it."""
        return [value for value in (run.number(key) for run in self.runs) if value is not None]

    def mean_std(self, key: str) -> tuple[float | None, float | None]:
        """Mean and population standard deviation of a number over the runs."""
        return mean_std(self.numbers(key))

    def seeds(self) -> list[str]:
        """The seeds of the runs, as text."""
        return [str(run.facts.get("seed")) for run in self.runs]

    def comparison(self, metric: str) -> Comparison | None:
        """The comparison with the Original; None without one, or if a mean is not known."""
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

        own, others = ([run.predictions for run in row.runs] for row in (self, self.original))
        try:
            gain = compare(own, others, metric, paired=self.seeds() == self.original.seeds())
        except InputError as error:
            return Comparison(difference, None, str(error))
        if abs(gain.mean - difference) > 0.005:
            problem = f"results.yaml has {difference:+.2f}, predictions.npz {gain.mean:+.2f}"
            return Comparison(difference, None, problem)
        return Comparison(difference, gain)

    def missing_for(self, metric: str) -> str:
        """Why no interval can be computed from these runs; empty if nothing is missing."""
        if METRICS[metric].of_predictions is None:
            return f"{metric} is not that of the last step, whose predictions are kept"
        absent = [run.folder for run in self.runs if run.predictions is None]
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        return f"no predictions.npz in {absent[0]}{more}" if absent else ""


@dataclass(frozen=True)
class Report:
    """All runs below a folder.

    Attributes:
        tables: A table for each dataset, arch and start (pretrained or not); Original comes first.
        unfinished: Folders of unfinished runs.
    """

    tables: list[list[Row]]
    unfinished: list[str]

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table]


def read_report(root: str, metric: str) -> Report:
    """Find and read all runs below `root`.

    Args:
        root: Folder with runs at any depth.
        metric: Name in METRICS; a warning names the runs that do not know it.

    Raises:
        InputError: No run is finished, or a table would have runs of different test sets.
    """
    require(os.path.isdir(root), f"{root} is not a folder; give one that holds runs")
    folders = list(folders_below(root))
    finished = {folder for folder, files in folders if "results.yaml" in files}
    begun = {folder for folder, files in folders if "options.yaml" in files}
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
    """Each folder with the names of its files; links are followed, but no folder is read twice."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
        else:
            seen.add(real)
            yield folder, files


def read_tables(run_dirs: Iterable[str], root: str, metric: str) -> list[list[Row]]:
    """Read runs into tables, in which Original comes first and the order of `run_dirs` is kept.

    Args:
        run_dirs: Folders of finished runs.
        root: The folder that was searched for them, from which rows are named.
        metric: Name in METRICS; a warning names the runs that do not know it.
    """
    # Runs of one folder are the seeds of an arm.
    rows: dict[str, Row] = {}
    for run_dir in run_dirs:
        run = read_run(run_dir, metric)
        folder, seed_name = os.path.split(os.path.abspath(run_dir))
        if run is not None:
            seed = seed_name.removeprefix("seed")
            facts = {"seed": seed, **facts_of_path(folder, root), **run.facts}
            run = dataclasses.replace(run, facts=facts)
            rows.setdefault(folder, Row(folder, [])).runs.append(run)
    # Arms with the same dataset, arch and start stand in one table.
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows.values():
        row.runs.sort(key=lambda run: natural_key(str(run.facts["seed"])))
        tables.setdefault(tuple(map(row.text, GROUP)), []).append(row)
    for table in tables.values():
        table.sort(key=lambda row: row.text("arm") != ORIGINAL)
        name_and_pair(table, root)
    return list(tables.values())


def facts_of_path(folder: str, root: str) -> dict[str, Any]:
    """The facts of an arm that the names of folders below `root` tell, if results.yaml does not."""
    # Match from `root` outwards: a folder above it may be called my_pretrained_models.
    top = Path(os.path.abspath(root))
    for start in (top, *top.parents):
        if match := RUN_FOLDER.search(Path(os.path.relpath(folder, start)).as_posix()):
            dataset, arch, un, exp, lr = match.groups()
            facts = {"dataset": dataset, "arch": arch, "pretrained": un is None}
            return {**facts, "arm": exp or ORIGINAL, "lr": float(lr)}
    dataset_dir, arm = os.path.split(folder)
    return {"dataset": os.path.basename(dataset_dir), "arch": "unknown arch", "arm": arm}


def name_and_pair(table: Sequence[Row], root: str) -> None:
    """Give each row its Original and a name: that of the arm, if necessary with lr and folder."""
    originals = [row for row in table if row.text("arm") == ORIGINAL]
    for row in table:
        arm, lr = row.text("arm"), row.text("lr")
        candidates = [] if arm == ORIGINAL else originals
        # Of several Originals, the one that was trained like the row.
        for key in ("lr", "training_images", "real_images", "steps"):
            alike = [other for other in candidates if other.text(key) == row.text(key)]
            candidates = alike if len(candidates) > 1 else candidates
        row.original = candidates[0] if len(candidates) == 1 else None
        lrs = [other.text("lr") for other in table if other.text("arm") == arm]
        row.name = arm + (f", lr {lr or 'unknown'}" if len(set(lrs)) > 1 else "")
        row.name += f", {os.path.relpath(row.folder, root)}" if lrs.count(lr) > 1 else ""


def check_same_test_set(rows: Sequence[Row]) -> None:
    """Raise InputError if two runs are known to have been tested on different images."""
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
    """Short names of the settings in which the rows differ."""
    keys = dict.fromkeys(key for row in rows for run in row.runs for key in run.facts)
    texts = {key: {row.text(key) for row in rows} for key in keys if key not in METRICS}
    several = [key for key, values in texts.items() if len(values) > 1]
    return list(dict.fromkeys(key.rsplit(".", 1)[-1] for key in several))


def full_names(settings: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The full names of settings, as in the facts of runs: "rho" may mean "expanded_set.rho".

    Args:
        settings: Short or full names.
        rows: Rows of runs that have these settings.

    Raises:
        InputError: No run has such a setting, or several settings end in the name.
    """
    keys = list(dict.fromkeys(key for row in rows for run in row.runs for key in run.facts))
    names = []
    for name in settings:
        ending = [key for key in keys if key.rsplit(".", 1)[-1] == name]
        exact = [key for key in keys if key == name]
        if not (exact or ending):
            raise unknown_name("setting", name, differing(rows) or keys)
        require(
            bool(exact) or len(ending) == 1,
            f"{name} may be {' or '.join(ending)}; give one of these names in full",
        )
        names.append((exact or ending)[0])
    return names


def read_run(run_dir: str | Path, metric: str) -> Run | None:
    """Read the run of a folder; None, and a warning, if its results.yaml cannot be used.

    A run that does not know `metric`, a name in METRICS, gives a warning as well.
    """
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
    facts |= figures_of_set(run_dir, facts)
    run = Run(str(run_dir), {key: value for key, value in facts.items() if value is not None})
    if run.number(metric) is None:
        log([f"warning: {path} is not counted: it holds no number as {metric}"])
    return run


def flat(values: Mapping[Any, Any], start: str = "") -> dict[str, Any]:
    """Flatten settings: those in groups become "group.name", and lists become text.

    Args:
        values: Settings and groups of settings.
        start: Put before every name.
    """
    facts: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{start}{key}" if isinstance(key, str) else ""
        if not is_plain(name) or not name:
            continue
        if isinstance(value, dict) and not start:
            facts |= flat(value, f"{name}.")
        elif isinstance(value, list) and len(value) < LONGEST_TEXT and all(map(is_plain, value)):
            facts[name] = " ".join(map(str, value))
        else:
            facts[name] = value
    return facts


def is_plain(value: Any) -> bool:
    """Whether a table can show the value: text, or a number of usual size."""
    if isinstance(value, str):
        return is_text(value) and value.isprintable() and len(value) < LONGEST_TEXT
    return value is None or (isinstance(value, int | float) and abs(value) < LARGEST_NUMBER)


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation; a single value has no deviation."""
    # Population (ddof 0), as numpy.std in the DistDiff repository's script.
    return fmean(values) if values else None, pstdev(values) if len(values) > 1 else None


def natural_key(name: str) -> list[Any]:
    """A sort key by which seed2 comes before seed10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def log(lines: Iterable[str]) -> None:
    """Write lines to stderr."""
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
