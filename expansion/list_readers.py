"""Reader of datasets whose labels stand in lists: text, JSON, JSON lines or CSV files.

A list becomes rows of (image path, class); `RowsReader` makes records of the rows of each split.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from expansion.config import JSON_ERRORS, option, require
from expansion.errors import InputError, brief
from expansion.readers import require_root
from expansion.records import ImageRecord, shown
from expansion.splits import SplitOptions, read_json, stored_split

LONGEST_NUMBER = 20  # digits of a class's or image's number
PATH_TEMPLATE = "{path}"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
TEST_WORDS = ("test", "val", "valid", "validation")  # in a split column; the first present counts


@dataclass(frozen=True)
class Row:
    """One line of a list: an image, its class, and what else the line tells.

    Attributes:
        path: Relative to the dataset folder, with "/".
        number: The class's number in the annotations, where they have one; only its order counts.
        split: The word in a split column, or None.
    """

    path: str
    class_name: str
    number: int | None = None
    split: str | None = None


class RowsReader:
    """Records from rows. Labels are contiguous over the classes that have training images.

    Args:
        rows: Split -> its rows; "all" where the split is made by seed. Training rows alone are
            split where `options` give a test fraction.
        class_order: Class names in label order, where a file gives it; else by number or name.
        lacks: Split -> why it has no rows.
    """

    spoken_names: Mapping[str, str] = {}

    def __init__(
        self,
        root: Path,
        name: str,
        rows: Mapping[str, Sequence[Row]],
        options: SplitOptions,
        class_order: Sequence[str] = (),
        lacks: Mapping[str, str] | None = None,
    ):
        if options.test_fraction is not None and rows.get("train") and not rows.get("test"):
            rows = {"all": rows["train"]}
        self.root, self.name, self.rows, self.options = root, name, rows, options
        self.lacks = lacks or {}
        self.splits_by_seed = "all" in rows
        training = rows.get("all", rows.get("train"))
        require(bool(training), self.lacks.get("train", f"{root}: no training images listed"))
        self.class_names = _ordered_classes(training, class_order)

    def records(self, split: str) -> list[ImageRecord]:
        if self.splits_by_seed and split in ("train", "test"):
            return self._halves[split]
        if not self.rows.get(split):
            raise InputError(self.lacks.get(split, f"{self.root} lists no {split} images"))
        return self._records(self.rows[split])

    @cached_property
    def _halves(self) -> dict[str, list[ImageRecord]]:
        everything = self._records(self.rows["all"])
        train, test = stored_split(everything, self.options, self.root, self.name)
        return {"train": train, "test": test}

    def _records(self, rows: Sequence[Row]) -> list[ImageRecord]:
        labels = {name: label for label, name in enumerate(self.class_names)}
        classes: dict[str, str] = {}
        for row in rows:
            inside = not PurePosixPath(row.path).is_absolute() and ".." not in row.path.split("/")
            require(inside, f"{self.root}: the lists name {row.path!r}, outside the folder")
            require(
                row.class_name in labels,
                f"{self.root}: class {row.class_name!r} of {row.path} has no training images",
            )
            known = classes.setdefault(row.path, row.class_name)
            require(
                known == row.class_name,
                f"{self.root}: {row.path} is listed as {known!r} and as {row.class_name!r}",
            )
        absent = [path for path in classes if not os.path.isfile(self.root / path)]
        require(
            not absent,
            f"{self.root}: {len(absent)} of {len(classes)} listed images are not there: "
            f"{shown(absent)}; complete the download, or remove them from the list",
        )
        found = [
            ImageRecord(self.root / path, path, labels[class_name], class_name)
            for path, class_name in classes.items()
        ]
        return sorted(found, key=lambda r: (r.label, r.file_name))


@dataclass(frozen=True, kw_only=True)
class ListLayout(SplitOptions):
    """YAML fields of `reader: list`.

    A list is a text file (one image a line), JSON (a list of such lines, or of objects), JSON lines
    or CSV. Lines are taken apart by `line`, objects and CSV rows by the columns.
    """

    train: tuple[str, ...] = option((), "list files of the training images")
    test: tuple[str, ...] = option((), "list files of the test images")
    images: str | None = option(
        None, "list file or pattern (*.png) of all images, where there are no lists per split"
    )
    line: str = option(
        r"(?P<path>\S+)",
        "regular expression of a line, or of a path: groups path, class; optionally number, key",
    )
    image_path: str = option(PATH_TEMPLATE, "path of an image; {path} becomes the line's group")
    path_column: str = option("file_name", "column of the path")
    class_column: str = option("label", "column of the class")
    split_column: str = option("split", "column of the split, if there is one: train, val or test")
    labels: str | None = option(None, "file of lines '<key> <class number>'")
    splits: str | None = option(None, "file of lines '<key> <1 for training, 0 for testing>'")
    classes: str | None = option(None, "file with one class a line, in label order")
    class_line: str = option(
        r"(?P<name>.+)", "regular expression of its lines: groups name and optionally number"
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("line", "class_line"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InputError(f"{name} {getattr(self, name)!r}: {error}") from error


def metadata_layout(root: Path) -> ListLayout | None:
    """The layout of a folder with metadata.jsonl or metadata.csv, if it holds one."""
    found = [name for name in METADATA_FILES if (root / name).is_file()]
    return ListLayout(images=found[0]) if found else None


def read_lists(layout: ListLayout, root: Path, name: str) -> RowsReader:
    """Reader of a dataset with list files. Raises InputError for what is missing or unclear."""
    require_root(root)
    classes = _class_list(layout, root)
    order = list(dict.fromkeys(classes.values()))
    files = {"train": layout.train, "test": layout.test}
    absent = {
        split: [f for f in given if not (root / f).is_file()] for split, given in files.items()
    }
    if files["train"] and not (layout.images and absent["train"]):
        rows = {
            split: [row for f in given for row in _rows(layout, root, f, classes)]
            for split, given in files.items()
            if not absent[split]
        }
        lacks = {split: lack(root, split, names) for split, names in absent.items() if names}
        require(not (lacks and layout.images), lacks.get("test", ""))  # half of a split is a hole
        return RowsReader(root, name, rows, layout, order, lacks)
    require(layout.images is not None, f"dataset {name}: its YAML file names no lists")
    everything = _rows(layout, root, layout.images, classes)
    by_split = _by_split(everything)
    if by_split is None:
        require(
            layout.wanted,
            f"{root / layout.images} has no column {layout.split_column!r}; add it with train and "
            "test, or give --test_fraction 0.3 to split by seed",
        )
        by_split = {"all": everything}
    untested = f"{root / layout.images} names no image for testing; mark some with the split test"
    return RowsReader(root, name, by_split, layout, order, {"test": untested})


def _ordered_classes(rows: Iterable[Row], class_order: Sequence[str]) -> tuple[str, ...]:
    """Classes that occur: in the order of the list, else by number, else by name."""
    numbers: dict[str, int | None] = {}
    for row in rows:
        numbers.setdefault(row.class_name, row.number)
    if class_order:
        return tuple(name for name in class_order if name in numbers)
    if None not in numbers.values():
        return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))
    if all(map(_is_number, numbers)):
        return tuple(sorted(numbers, key=int))
    return tuple(sorted(numbers))


def lack(root: Path, split: str, names: Iterable[str]) -> str:
    """The error for missing label files, with the folder where they seem to be."""
    names = list(names)
    first = PurePosixPath(names[0])
    for place in (root.parent, *sorted(p for p in root.iterdir() if p.is_dir())):
        if (place / first).is_file():
            return f"{root} has no {first}, but {place} has: lay the dataset one level differently"
    return (
        f"{root} lacks the labels of the {split} images: {' or '.join(names)}; "
        "INSTALL.md shows the expected layout"
    )


def _class_list(layout: ListLayout, root: Path) -> dict[str, str]:
    """Class number (or, without numbers, the name) -> name, in label order."""
    if layout.classes is None:
        return {}
    found = {}
    for place, line in _lines(root, layout.classes):
        match = re.fullmatch(layout.class_line, line)
        require(match is not None, f"{place}: {line!r} does not match {layout.class_line}")
        groups = match.groupdict()
        found[groups.get("number") or groups["name"]] = groups["name"]
    return found


def _rows(layout: ListLayout, root: Path, source: str, classes: Mapping[str, str]) -> list[Row]:
    """Rows of a list file, or of the images that a pattern finds."""
    labels, splits = (_pairs(root, name) for name in (layout.labels, layout.splits))
    rows = []
    for place, entry in _entries(layout, root, source):
        key = entry.get("key")
        number = entry.get("number") or labels.get(key)
        class_name = entry.get("class") or classes.get(number)
        require(
            bool(class_name) and bool(entry.get("path")), f"{place}: no path and class in {entry}"
        )
        require(
            not classes or class_name in classes.values(),
            f"{place}: class {class_name!r} is not in {layout.classes}",
        )
        path = entry["path"]
        if layout.image_path != PATH_TEMPLATE and "*" not in source:
            path = layout.image_path.format(path=path)
        order = int(number) if number is not None and _is_number(number) else None
        split = entry.get("split") or {"1": "train", "0": "test"}.get(splits.get(key))
        rows.append(Row(path, class_name, order, split))
    return rows


def _entries(
    layout: ListLayout, root: Path, source: str
) -> Iterable[tuple[str, Mapping[str, str | None]]]:
    """(place for errors, what it says) of each line, object or file."""
    columns = {
        "path": layout.path_column,
        "class": layout.class_column,
        "split": layout.split_column,
    }
    if "*" in source:
        yield from _matching_files(root, source, layout.line)
        return
    for place, line in _items(root, source):
        yield place, _taken_apart(layout.line, columns, place, line)


def _matching_files(
    root: Path, pattern: str, line: str
) -> Iterable[tuple[str, Mapping[str, str | None]]]:
    """The files that the pattern finds, as far as their paths tell a class; others are strays."""
    paths = sorted(p for p in root.glob(pattern) if p.is_file() and p.name[0] != ".")
    names = [path.relative_to(root).as_posix() for path in paths]
    found = [(name, re.fullmatch(line, name)) for name in names]
    require(
        any(match for _, match in found),
        f"{root} has no image {pattern}; INSTALL.md shows the expected layout",
    )
    for name, match in found:
        if match:
            yield name, {**match.groupdict(), "path": name}


def _items(root: Path, source: str) -> Iterable[tuple[str, Any]]:
    """(place, text or object) of each entry of a list file."""
    path = root / source
    if source.endswith(".json"):
        require(path.is_file(), lack(root, "training", [source]))
        items = read_json(path, list)
        return ((f"{path}, item {i}", item) for i, item in enumerate(items, start=1))
    if source.endswith(".csv"):
        return _csv_rows(root, source)
    if source.endswith(".jsonl"):
        return _json_lines(root, source)
    return _lines(root, source)


def _taken_apart(
    pattern: str, columns: Mapping[str, str], place: str, line: Any
) -> Mapping[str, str | None]:
    """The groups of a line, or the named columns of a row as text."""
    if isinstance(line, str):
        match = re.fullmatch(pattern, line)
        require(match is not None, f"{place}: {line!r} does not match {pattern}")
        return match.groupdict()
    require(isinstance(line, dict), f"{place}: expected text or an object, got {brief(line)}")
    for name in (columns["path"], columns["class"]):
        require(
            line.get(name) not in (None, ""),
            f"{place}: no {name!r}; the columns are {shown(map(str, line))}",
        )
    return {
        key: None if line.get(name) in (None, "") else _cell(place, line[name])
        for key, name in columns.items()
    }


def _cell(place: str, value: Any) -> str:
    """Text or a number of a row as text."""
    require(isinstance(value, str | int | float), f"{place}: expected text, got {brief(value)}")
    return str(value)


def _is_number(text: str) -> bool:
    """Whether the text is a number of a size that a class or an image can have."""
    return text.isdecimal() and len(text) < LONGEST_NUMBER


def _lines(root: Path, name: str, comments: bool = True) -> Iterable[tuple[str, str]]:
    """(place, line) of a text file, without blank lines and, if marked by #, comments."""
    path = root / name
    require(path.is_file(), lack(root, "training", [name]))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as UTF-8 text: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not (comments and line.startswith("#")):
            yield f"{path}, line {number}", line


def _json_lines(root: Path, name: str) -> Iterable[tuple[str, Any]]:
    for place, line in _lines(root, name, comments=False):
        try:
            yield place, json.loads(line)
        except JSON_ERRORS as error:
            raise InputError(f"{place}: no JSON ({error})") from error


def _csv_rows(root: Path, name: str) -> Iterable[tuple[str, Any]]:
    lines = [line for _, line in _lines(root, name, comments=False)]
    try:
        rows = list(csv.DictReader(lines))
    except csv.Error as error:
        raise InputError(f"cannot read {root / name} as CSV: {error}") from error
    return ((f"{root / name}, row {i}", row) for i, row in enumerate(rows, start=1))


def _pairs(root: Path, name: str | None) -> dict[str | None, str]:
    """First word -> the rest, of each line."""
    if name is None:
        return {}
    parts = [line.split(maxsplit=1) for _, line in _lines(root, name)]
    require(all(len(p) == 2 for p in parts), f"{root / name}: expected lines of a key and a value")
    return dict(parts)


def _by_split(rows: Sequence[Row]) -> dict[str, list[Row]] | None:
    """Rows per split, if the rows tell theirs."""
    words = {row.split for row in rows}
    if words == {None}:
        return None
    test = next((word for word in TEST_WORDS if word in words), "test")
    return {
        "train": [row for row in rows if row.split == "train"],
        "test": [row for row in rows if row.split == test],
    }
