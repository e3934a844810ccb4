"""Reads one run folder: what results.yaml, the predictions and the folder's path tell of a run.

    <arm>/seed<k>/results.yaml     settings and results of a finished run
    <arm>/seed<k>/options.yaml     without results.yaml: the run is unfinished
    <arm>/seed<k>/predictions.npz  predictions for all test images; older runs have none

Runs of the released DistDiff code are read too; settings that their results.yaml lacks are taken
from the path.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.common.config import load_yaml
from expansion.common.errors import InputError, brief, is_text, require
from expansion.metrics.classification import METRICS
from expansion.metrics.set_figures import figures_of_set

if TYPE_CHECKING:
    from expansion.metrics.predictions import Predictions

ORIGINAL = "Original"  # the arm that others are compared with
LONGEST_TEXT = 200  # characters that a table can show in a cell
LARGEST_NUMBER = 1e15
GROUP = ("dataset", "arch", "pretrained")  # settings that all rows of a table have in common
FACTS = (*GROUP, "arm", "num_real", "num_generated", "lr", "steps")
DECISIVE = ("lr", "steps", "seed", "training_images", "real_images")  # equal if trained alike
# Facts that identify a test set; older versions wrote "real_images", with training images in it.
TEST_SET = ("test_images", "num_test", "real_images")
# Facts of a run that are results or names instead of settings.
RESULTS = {
    *METRICS, "seconds", "seed", "arm", "folder", "acceptance_rate", "accepted_accuracy",
    "seed_accuracy", "val_accuracy", "expanded_set.folder", "num_test_learnt",
}  # fmt: skip
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

    @property
    def seed(self) -> str:
        """The seed as text; that of the folder's name, if results.yaml does not tell it."""
        name = os.path.basename(os.path.abspath(self.folder))
        return str(self.facts.get("seed", name.removeprefix("seed")))

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
    def options(self) -> Mapping[str, Any]:
        """All that decides the run, and the command, from options.yaml; empty without that file."""
        try:
            return load_yaml(Path(self.folder, "options.yaml")).values
        except InputError:
            return {}

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


def log(lines: Iterable[str]) -> None:
    """Write lines to stderr."""
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
