"""Finds metadata.jsonl or metadata.csv in a dataset's folder or in each of its split folders.

This is the layout of Hugging Face's `imagefolder`. If the file has a column `label`, that gives the
classes, and not the names of folders; a file without this column is not used.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.common.errors import JSON_ERRORS, require, shown
from expansion.data.readers.lists import ListLayout
from expansion.data.readers.split_folders import TESTING, folders_by_split, has_classes, split_of
from expansion.images.file_trees import folders_in, holds_images

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
EXPANDED = "expansion.yaml"  # lies in every expanded set
UNREAD = ("metadata.parquet", "metadata.tsv", "metadata.json", "metadata.xlsx")


@dataclass(frozen=True)
class Metadata:
    """How metadata files are used.

    Attributes:
        layout: How they are read; None if the names of folders are the classes.
        remarks: Lines on the choice.
    """

    layout: ListLayout | None = None
    remarks: tuple[str, ...] = ()


def find_metadata(root: Path) -> Metadata:
    """Decide whether metadata files or the names of folders give the classes.

    Raises:
        InputError: Several files give labels, or a file gives those of one split only.
    """
    # The files in the dataset folder and in its split folders.
    own = _only(root)
    splits = {
        split: [path for path in paths if path.is_dir()]
        for split, paths in folders_by_split(root).items()
        if split in ("train", *TESTING)
    }
    inner = {split: file for split, paths in splits.items() for file in map(_only, paths) if file}
    labelled = {split: file for split, file in inner.items() if _tells_labels(file)}
    # A file for all splits, or one in each of them.
    names = _class_names(root, splits)
    if own is not None and (_tells_labels(own) or not (names or inner)):
        require(
            not labelled,
            f"{root}: {own.name} and {_below(root, labelled.values())} give labels; remove one",
        )
        layout = ListLayout(images=own.name, split_folders=True)
        return Metadata(layout, _chosen(own.name, names))
    if labelled or (inner and not names):
        return _per_split(root, splits, inner, names)
    # Neither: the folders are the classes, and the files are only mentioned.
    unused = [file for file in (own, *inner.values()) if file]
    remarks = [
        f"{_below(root, [file])} has no column 'label' and is not used; the classes are the names "
        "of the folders"
        for file in unused
    ]
    remarks += [
        f"{name} is not used; give the labels as metadata.csv"
        for name in UNREAD
        if (root / name).is_file()
    ]
    return Metadata(None, tuple(remarks))


def _per_split(
    root: Path,
    splits: dict[str, list[Path]],
    inner: dict[str, Path],
    names: Sequence[str],
) -> Metadata:
    """The layout with a file in each split folder, whose paths are relative to that folder."""
    for paths in splits.values():
        twins = shown(f"{path.name}/" for path in paths)
        require(len(paths) == 1, f"{root}: {twins} mean the same split; merge them")
    test = next((split for split in TESTING if split in inner), None)
    test = test or next((split for split in TESTING if split in splits), None)
    for split in filter(None, ("train", test)):
        lacking = split in splits and split not in inner
        place = splits[split][0] if lacking else root
        require(
            not lacking,
            f"{_below(root, inner.values())} tells labels, but {place} has no metadata.jsonl or "
            "metadata.csv; add it, or remove the other",
        )
    lists = {split: _below(root, [file]) for split, file in inner.items()}
    layout = ListLayout(
        train=(lists["train"],) if "train" in lists else (),
        test=(lists[test],) if test in lists else (),
        beside=True,
    )
    require("train" in lists, f"{root} has no folder train/ beside {shown(lists.values())}")
    remarks = [f"{splits['val'][0].name}/ is used as the test split"] if test == "val" else []
    return Metadata(layout, (*remarks, *_chosen(shown(layout.train + layout.test), names)))


def labels_file(folder: Path) -> Path | None:
    """The metadata file of a folder, if it has one and that tells labels.

    Raises:
        InputError: There are two, or the folder holds an expanded set of this project.
    """
    file = _only(folder)
    return file if file is not None and _tells_labels(file) else None


def _only(folder: Path) -> Path | None:
    """The metadata file of a folder; None if it has none.

    Raises:
        InputError: There are two, or the folder holds an expanded set of this project.
    """
    require(
        not (folder / EXPANDED).is_file(),
        f"{folder} holds an expanded set of this project ({EXPANDED}); its images are no real "
        "ones: move them out of the dataset",
    )
    files = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    require(
        len(files) < 2,
        f"{folder} holds {' and '.join(path.name for path in files)}; remove the one that does not "
        "count",
    )
    return files[0] if files else None


def _tells_labels(file: Path) -> bool:
    """Whether a metadata file has a column `label`; damage is left for its reader to report."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = next((line for line in map(str.strip, lines) if line), "")
        if file.suffix == ".jsonl":
            columns = json.loads(first)
        else:
            columns = next(csv.reader([first.replace(";", ",").replace("\t", ",")]), [])
    except (csv.Error, *JSON_ERRORS):  # a UnicodeDecodeError is a ValueError, as JSON's are
        return True
    names = columns if isinstance(columns, dict | list) else []
    return "label" in {str(name).strip().casefold() for name in names}


def _class_names(root: Path, splits: dict[str, list[Path]]) -> list[str]:
    """Names of the folders that would be the classes if there were no metadata."""
    if splits.get("train"):
        return [
            p.name for train in splits["train"] if has_classes(train) for p in folders_in(train)
        ]
    return [p.name for p in folders_in(root) if split_of(p.name) is None and holds_images(p)]


def _chosen(file: str, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"labels from {file}; the folder names {shown(names)} are not used",)


def _below(root: Path, files: Iterable[Path]) -> str:
    return shown(file.relative_to(root).as_posix() for file in files)
