"""Reads from run folders what is needed to use their classifiers on new images; loads no torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.classifier.recipe import Recipe
from expansion.common.config import Source, compose, load_yaml
from expansion.common.errors import InputError, brief, require, shown
from expansion.common.files import is_done
from expansion.images.pixels import Reading, check_reading
from expansion.training.run_lock import OPTIONS

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth.tar"  # weights after the last step
SEED_FOLDER = re.compile(r"seed(\d+)")
RESULTS = "results.yaml"
GO_ON = f"it has no {RESULTS}; run the same training command to go on"
PREPROCESSING = ("arch", "image_size", "resize_size", "mixed_precision")


@dataclass(frozen=True)
class View:
    """How the images of a run are prepared.

    Attributes:
        recipe: Gives the preprocessing and the precision; nothing else in it counts.
        reading: Its dataset's settings of background and range of values.
        crop_bottom: Rows of pixels that are cut off below its dataset's images.
    """

    recipe: Recipe
    reading: Reading
    crop_bottom: int


@dataclass(frozen=True)
class FinishedRuns:
    """One run, or the runs of all seeds of an arm.

    Attributes:
        folders: The run folders.
        view: How their images are prepared.
        unfinished: Names of the folders of unfinished seeds, which are not used.
    """

    folders: tuple[Path, ...]
    view: View
    unfinished: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The file of the weights after the last step, for each run."""
        return tuple(folder / CHECKPOINT for folder in self.folders)

    @property
    def title(self) -> str:
        """The runs in a few words."""
        if len(self.folders) == 1:
            return f"{self.folders[0]}"
        names = ", ".join(folder.name for folder in self.folders)
        return f"mean of {len(self.folders)} classifiers in {self.folders[0].parent}: {names}"


def find_runs(place: str | Path) -> FinishedRuns:
    """Find the run in a folder, or all finished runs of the seeds in it.

    Args:
        place: Run folder, or the folder above it.

    Raises:
        InputError: There is no finished run, a file is missing, or the seeds were trained on images
            that were prepared differently.
    """
    folder = Path(place)
    require(
        folder.is_dir(),
        f"run folder {place} does not exist; give one of train_original.py or train_expand.py, "
        "such as checkpoint/<dataset>/<run>/seed1, or the folder of all seeds",
    )
    unfinished: list[str] = []
    if any((folder / name).is_file() for name in (OPTIONS, RESULTS, CHECKPOINT)):
        require(is_done(folder), f"{folder} is not finished: {GO_ON}")
        folders = [folder]
    else:
        seeds = _seed_folders(folder)
        folders = [seed for seed in seeds if is_done(seed)]
        unfinished = [seed.name for seed in seeds if not is_done(seed)]
        require(bool(seeds), f"{folder} holds no run{_runs_below(folder)}")
        require(bool(folders), f"none of the {len(seeds)} runs in {folder} is finished: {GO_ON}")
    views = [_view(each) for each in folders]
    for each, view in zip(folders, views, strict=True):
        require(
            view == views[0],
            f"{folders[0]} and {each} were trained on images prepared differently; give one of "
            "them alone",
        )
    return FinishedRuns(tuple(folders), views[0], tuple(unfinished))


def _seed_folders(folder: Path) -> list[Path]:
    matches = [(SEED_FOLDER.fullmatch(p.name), p) for p in folder.iterdir() if p.is_dir()]
    return [path for _, path in sorted((int(m[1]), p) for m, p in matches if m)]


def _runs_below(folder: Path) -> str:
    """The end of the error about a folder without runs: where there are some below it."""
    parents = {path.parent.parent for path in folder.glob(f"*/**/seed*/{RESULTS}")}
    if not parents:
        return "; give a folder of train_original.py or train_expand.py"
    return f" of its own; give one of {shown(sorted(map(str, parents)))}"


def _view(folder: Path) -> View:
    path = folder / OPTIONS
    require(path.is_file(), f"{folder} has no {OPTIONS}, which says how it looks at images")
    require(
        (folder / CHECKPOINT).is_file(),
        f"{folder} has no {CHECKPOINT}, the weights after the last step; train it again",
    )
    values = load_yaml(path).values
    absent = [key for key in PREPROCESSING if key not in values]
    require(not absent, f"{path} does not say {shown(absent)}; give a run of this project")
    chosen = {key: values[key] for key in PREPROCESSING}
    (recipe,) = compose([Recipe], [Source({**chosen, "image_cache": "none"}, str(path))])
    if "reading" not in values or "crop_bottom" not in values:
        logger.warning(
            f"{path} is of an older version and does not say how images are read: transparent "
            "pixels are laid on white, nothing is cut off"
        )
    return View(recipe, _reading(path, values), _crop_bottom(path, values))


def _reading(path: Path, values: Mapping[str, Any]) -> Reading:
    stored = values.get("reading", {})
    if not isinstance(stored, Mapping) or set(stored) - {"background", "value_range"}:
        raise InputError(f"{path}: reading: expected background and value_range")
    background, limits = stored.get("background", "white"), stored.get("value_range", [])
    numbers = isinstance(limits, list) and all(type(x) in (int, float) for x in limits)
    require(
        isinstance(background, str) and numbers,
        f"{path}: reading: expected a colour and a range, got {brief(background)}, {brief(limits)}",
    )
    return check_reading(Reading(background, tuple(limits)), f"{path}: reading")


def _crop_bottom(path: Path, values: Mapping[str, Any]) -> int:
    rows = values.get("crop_bottom", 0)
    require(
        type(rows) is int and rows >= 0,
        f"{path}: crop_bottom: expected a number of rows, got {brief(rows)}",
    )
    return rows
