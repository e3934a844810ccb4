"""Recognises the datasets of `configs/datasets/` by the files that they must have.

A folder that a user gives by its path may hold the lists, annotations or arrays of a known dataset.
Then it has an official split, and must not be split at random.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expansion.common.config import CONFIG_DIR
from expansion.common.errors import JSON_ERRORS, InputError
from expansion.data.layouts.configs import DatasetConfig, known_names, read_config
from expansion.data.readers.arrays import UNPACKED, ArraysLayout
from expansion.data.readers.folders import FolderLayout
from expansion.data.readers.lists import ListLayout
from expansion.data.readers.mat import MatLayout
from expansion.data.readers.split_folders import folders_by_split
from expansion.data.splits import SplitOptions
from expansion.images.file_trees import folders_in, holds_images

# Format of arrays -> the places, below the dataset folder, where its first file may be.
ARRAY_FILES: Mapping[str, tuple[str, ...]] = {
    "cifar10": ("data_batch_1", "cifar-10-batches-py/data_batch_1"),
    "cifar100": ("cifar-100-python/meta",),
    "idx": tuple(
        f"{folder}train-images{mark}idx3-ubyte{end}"
        for folder in ("", "raw/")
        for mark in "-."
        for end in ("", ".gz")
    ),
    "stl10": ("train_X.bin", "stl10_binary/train_X.bin"),
}


@dataclass(frozen=True)
class Known:
    """A dataset of `configs/datasets/`, with its settings and the fields of its reader."""

    name: str
    config: DatasetConfig
    layout: Any

    @property
    def has_split(self) -> bool:
        """Whether its own files say which images are for testing."""
        return not (isinstance(self.layout, SplitOptions) and self.layout.wanted)


def recognise(root: Path) -> Known | None:
    """The known dataset whose files are in `root`; None if there is none.

    Raises:
        InputError: Several datasets have such files, and the folder's name does not tell which.
    """
    candidates = _candidates(root)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    own = _letters(root.name)
    for name_of in (lambda k: k.name, lambda k: Path(k.config.folder or k.name).name):
        named = [known for known in candidates if _letters(name_of(known)) == own]
        if len(named) == 1:
            return named[0]
    names = [known.name for known in candidates]
    raise InputError(
        f"{root} is laid out as {' and as '.join(names)}; to say which, rename it to "
        f"{names[0]} or {names[1]}"
    )


def known_around(root: Path) -> tuple[Path, list[Known]] | None:
    """A known dataset in the folder above or below `root`, where users give the wrong level.

    Returns:
        The dataset's folder and the datasets that it may be; None if there is none.
    """
    above = [known for known in _candidates(root.parent) if root.name in _image_folders(known)]
    if above:
        return root.parent, above
    for child in folders_in(root):
        if not holds_images(child) and _candidates(child):
            return child, _candidates(child)
    return None


def _candidates(root: Path) -> list[Known]:
    return [known for known in _known(CONFIG_DIR) if _matches(known, root)]


@functools.cache
def _known(config_dir: Path) -> list[Known]:
    """All datasets whose YAML files are right; faults of others are told when they are named."""
    datasets = []
    for name in known_names():
        try:
            datasets.append(Known(name, *read_config(name)))
        except InputError:
            continue
    return datasets


def _matches(known: Known, root: Path) -> bool:
    leaves_mark = MARKS.get(type(known.layout))  # without one, it is found by its name alone
    if leaves_mark is None or known.config.reader == "embedded":
        return False
    return leaves_mark(known, root)


def _has_lists(known: Known, root: Path) -> bool:
    """Whether `root` has all list files and folders of images, or an image that fits a pattern."""
    layout: ListLayout = known.layout
    pattern = layout.images if layout.images and "*" in layout.images else None
    if pattern is not None:
        return next(root.glob(pattern), None) is not None
    names = (layout.images, layout.labels, layout.splits, layout.classes)
    files = [*layout.train, *layout.test, *filter(None, names)]
    return all((root / name).is_file() for name in files) and all(
        (root / name).is_dir() for name in _image_folders(known)
    )


def _has_mat(known: Known, root: Path) -> bool:
    layout: MatLayout = known.layout
    needed = [layout.labels_file, layout.splits_file] if layout.labels_file else [layout.class_file]
    some = layout.train_annotations
    return all(name and (root / name).is_file() for name in needed) and (
        not some or any((root / name).is_file() for name in some)
    )


def _has_arrays(known: Known, root: Path) -> bool:
    layout: ArraysLayout = known.layout
    if (root / UNPACKED).is_file():
        try:
            settings = json.loads((root / UNPACKED).read_text(encoding="utf-8"))["settings"]
            wanted = json.loads(json.dumps(asdict(layout)))
            return {key: settings[key] for key in wanted} == wanted
        except (OSError, KeyError, TypeError, *JSON_ERRORS):
            return False
    files = (layout.file,) if layout.format == "npz" else ARRAY_FILES[layout.format]
    return any(name and (root / name).is_file() for name in files)


def _has_folders(known: Known, root: Path) -> bool:
    """Whether `root` has a folder or file that only this dataset has, or its name and classes."""
    layout: FolderLayout = known.layout
    if layout.single_folder != ".":
        return (root / layout.single_folder).is_dir() and not folders_by_split(root).get("train")
    if layout.class_names_file is not None:
        return (root / layout.class_names_file).is_file() and bool(
            folders_by_split(root).get("train")
        )
    title = Path(known.config.folder or known.name).name
    trains = folders_by_split(root).get("train") or []
    names = {folder.name for train in trains for folder in folders_in(train)}
    return root.name == title and bool(names) and names <= set(known.config.class_names or {})


MARKS: Mapping[type, Callable[[Known, Path], bool]] = {
    ListLayout: _has_lists,
    MatLayout: _has_mat,
    ArraysLayout: _has_arrays,
    FolderLayout: _has_folders,
}


def _image_folders(known: Known) -> set[str]:
    """Names of the folders, directly in the dataset folder, that hold its images."""
    layout = known.layout
    if isinstance(layout, ListLayout):
        pattern = layout.images if layout.images and "*" in layout.images else ""
        paths = [layout.image_path, pattern]
    elif isinstance(layout, MatLayout):
        paths = [layout.image_path, f"{layout.train_images}/", f"{layout.test_images}/"]
    elif isinstance(layout, FolderLayout):
        paths = [f"{layout.single_folder}/"]
    else:
        return set()
    firsts = {path.split("/")[0] for path in paths if "/" in path}
    return {first for first in firsts if first not in ("", ".") and "{" not in first}


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
