"""Reads the run folders below a root into rows, one for each arm, and tables.

<root>/**/seed<k>     the folder of a run; see run_folder.py
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from expansion.common.errors import InputError, require, unknown_name
from expansion.metrics.classification import METRICS
from expansion.metrics.run_folder import (
    GROUP,
    ORIGINAL,
    TEST_SET,
    Run,
    facts_of_path,
    log,
    read_run,
)

if TYPE_CHECKING:
    from expansion.metrics.comparison import Gain


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
        repeats: Further runs of their seeds, which do not count.
    """

    folder: str
    runs: list[Run]
    name: str = ""
    original: Row | None = None
    repeats: list[Run] = field(default_factory=list)
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
        return [run.seed for run in self.runs]

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
        folder = os.path.dirname(os.path.abspath(run_dir))
        if run is not None:
            facts = {"seed": run.seed, **facts_of_path(folder, root), **run.facts}
            run = dataclasses.replace(run, facts=facts)
            rows.setdefault(folder, Row(folder, [])).runs.append(run)
    # Arms with the same dataset, arch and start stand in one table.
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows.values():
        row.runs, row.repeats = without_repeats(row.runs)
        row.runs.sort(key=lambda run: natural_key(run.seed))
        tables.setdefault(tuple(map(row.text, GROUP)), []).append(row)
    for table in tables.values():
        table.sort(key=lambda row: row.text("arm") != ORIGINAL)
        name_and_pair(table, root)
    return list(tables.values())


def without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Divide runs of one arm into one for each seed, and further runs of these seeds.

    Of several runs of a seed, such as one whose folder was renamed and the one that took its place,
    that in the folder `seed<k>` counts.

    Raises:
        InputError: Several folders hold a run of one seed, and none is called `seed<k>`.
    """
    by_seed: dict[str, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    kept, repeats = [], []
    for seed, same in by_seed.items():
        first = [run for run in same if os.path.basename(run.folder) == f"seed{seed}"] or same
        require(
            len(first) == 1,
            f"{' and '.join(run.folder for run in same)} hold runs of the same seed, {seed}; "
            f"rename the one that counts to seed{seed}, or move the others elsewhere",
        )
        kept += first
        repeats += [run for run in same if run is not first[0]]
    return kept, repeats


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


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation; a single value has no deviation."""
    # Population (ddof 0), as numpy.std in the DistDiff repository's script.
    return fmean(values) if values else None, pstdev(values) if len(values) > 1 else None


def natural_key(name: str) -> list[Any]:
    """A sort key by which seed2 comes before seed10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
