"""Reader of datasets whose labels are in list files: text, JSON, JSON lines or CSV.

A list becomes rows (image path, class, split), of which `RowsReader` makes records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from expansion.common.config import option
from expansion.common.errors import InputError, brief, require, shown
from expansion.common.texts import class_text, stripped
from expansion.data.readers.folders import require_root
from expansion.data.readers.list_files import lack, named_value, pairs, read_list, text_lines
from expansion.data.readers.rows import (
    Listing,
    Row,
    RowsReader,
    counted,
    divided,
    is_number,
    of_split,
    row_path,
)
from expansion.data.readers.split_folders import split_of
from expansion.data.splits import SplitOptions
from expansion.data.stored_splits import find_stored_split

PATH_TEMPLATE = "{path}"
SPLIT_NUMBERS = {"1": "train", "0": "test"}  # in the file `splits`


@dataclass(frozen=True, kw_only=True)
class ListLayout(SplitOptions):
    """YAML fields of `reader: list`.

    A list is a text file with one image per line, JSON (a list of such lines, or of objects), JSON
    lines or CSV. The regular expression `line` divides lines; columns divide objects and CSV rows.
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
    split_column: str = option(
        "split", "column of the split, if there is one: words like train, Val, testing"
    )
    beside: bool = option(False, "paths are relative to the folder of their list file")
    split_folders: bool = option(
        False, "where no column tells the split, the first folder of a path does: train, test"
    )
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


def read_lists(layout: ListLayout, root: Path, name: str) -> RowsReader:
    """Make the reader of a dataset with list files.

    Args:
        layout: Fields of the YAML file.
        root: The dataset's folder.
        name: Name of the dataset.

    Raises:
        InputError: Files are missing or unclear.
    """
    require_root(root)
    classes = _class_list(layout, root)
    files = {"train": layout.train, "test": layout.test}
    absent = {
        split: [f for f in given if not (root / f).is_file()] for split, given in files.items()
    }
    if files["train"] and not (layout.images and absent["train"]):
        listing = _list_per_split(layout, root, classes, absent)
    else:
        require(layout.images is not None, f"dataset {name}: its YAML file names no lists")
        listing = _one_list(layout, root, classes)
    return RowsReader(root, name, listing, layout)


def _list_per_split(
    layout: ListLayout, root: Path, classes: Mapping[str, str], absent: Mapping[str, Sequence[str]]
) -> Listing:
    """Read the files `train` and `test` as far as they exist.

    Args:
        layout: Fields of the YAML file.
        root: The dataset's folder.
        classes: As `_class_list` gives them.
        absent: Split -> its files that do not exist.
    """
    lacks = {split: lack(root, split, names) for split, names in absent.items() if names}
    # A copy with lists per split must have all of them; `images` is for copies with none.
    require(not (lacks and layout.images), lacks.get("test", ""))
    rows, ignored, remarks = {}, [], []
    for split, given in (("train", layout.train), ("test", layout.test)):
        if absent[split]:
            continue
        parts = [_rows(layout, root, source, classes) for source in given]
        rows[split], others = of_split([row for part, _ in parts for row in part], split)
        ignored += others
        remarks += [remark for _, told in parts for remark in told]
    order = tuple(classes.values())
    return Listing(rows=rows, ignored=ignored, class_order=order, lacks=lacks, remarks=remarks)


def _one_list(layout: ListLayout, root: Path, classes: Mapping[str, str]) -> Listing:
    """Read the list `images`; its rows tell their split, or are to be split by seed."""
    source = root / layout.images
    everything, remarks = _rows(layout, root, layout.images, classes)
    order = tuple(classes.values())
    by_split = divided(everything, source)
    if by_split is None:
        require(
            layout.wanted or find_stored_split(root) is not None,
            f"{source} has no column {layout.split_column!r} with words in it; add it with train "
            "and test, or give --test_fraction 0.3 to split by seed",
        )
        return Listing(rows={"all": everything}, class_order=order, remarks=remarks)
    rows, ignored, more = by_split
    untested = f"{source} names no image for testing; mark some with the split test"
    return Listing(
        rows=rows,
        ignored=ignored,
        class_order=order,
        lacks={"test": untested},
        remarks=[*remarks, *more],
    )


def _class_list(layout: ListLayout, root: Path) -> dict[str, str]:
    """Number of a class (or its name, if there are no numbers) -> name, in label order."""
    classes: dict[str, str] = {}
    for place, line in text_lines(root, layout.classes) if layout.classes else ():
        match = re.fullmatch(layout.class_line, line)
        require(match is not None, f"{place}: {line!r} does not match {layout.class_line}")
        groups = match.groupdict()
        name = class_text(place, groups["name"])
        key = groups.get("number") or name
        require(
            key not in classes and name not in classes.values(),
            f"{place}: class {line!r} occurs twice; keep one",
        )
        classes[key] = name
    return classes


def _rows(
    layout: ListLayout, root: Path, source: str, classes: Mapping[str, str]
) -> tuple[list[Row], list[str]]:
    """Read a list file, or the images that fit a pattern: (rows, remarks)."""
    # What other files say of an image, by its key.
    labels, splits = (pairs(root, name) for name in (layout.labels, layout.splits))
    known = set(classes.values())
    rows, keys = [], set()
    for place, entry in _entries(layout, root, source):
        key = entry.get("key")
        keys.add(key)
        number = entry.get("number") or labels.get(key)
        class_name = entry.get("class") or classes.get(number)
        require(
            bool(class_name) and bool(entry.get("path")), f"{place}: no path and class in {entry}"
        )
        class_name = class_text(place, class_name)
        require(
            not classes or class_name in known,
            f"{place}: class {class_name!r} is not in {layout.classes}",
        )
        order = int(number) if number is not None and is_number(number) else None
        split = entry.get("split") or SPLIT_NUMBERS.get(splits.get(key), splits.get(key))
        path = _path(layout, source, entry["path"])
        if split is None and layout.split_folders:
            split = split_of(path.split("/")[0])
        rows.append(Row(path, class_name, order, split))
    # Lines of those files that no image asked for.
    remarks = [
        remark
        for name, values in ((layout.labels, labels), (layout.splits, splits))
        for remark in counted(
            "line", "lines", sorted(set(values) - keys), f"of {name} for no image of {source}"
        )
    ]
    return rows, remarks


def _path(layout: ListLayout, source: str, path: str) -> str:
    """The path of an image below the dataset's folder, from the path that its line gives."""
    if "*" in source:
        return path
    if layout.image_path != PATH_TEMPLATE:
        return row_path(layout.image_path.format(path=path))
    return row_path(str(PurePosixPath(source).parent / path) if layout.beside else path)


def _entries(
    layout: ListLayout, root: Path, source: str
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The pairs (place, values) of each line or object, or of each file that fits a pattern."""
    columns = {
        "path": layout.path_column,
        "class": layout.class_column,
        "split": layout.split_column,
    }
    if "*" in source:
        yield from _matching_files(root, source, layout.line)
        return
    for place, entry in read_list(root, source):
        if isinstance(entry, str):
            match = re.fullmatch(layout.line, entry)
            require(match is not None, f"{place}: {entry!r} does not match {layout.line}")
            yield place, {key: stripped(text or "") for key, text in match.groupdict().items()}
        else:
            yield place, _taken_apart(columns, place, entry)


def _matching_files(
    root: Path, pattern: str, line: str
) -> Iterable[tuple[str, Mapping[str, str | None]]]:
    """The pairs (path, values) of files that fit a pattern and whose path tells a class."""
    paths = sorted(p for p in root.glob(pattern) if p.is_file() and p.name[0] != ".")
    names = [path.relative_to(root).as_posix() for path in paths]
    matches = [(name, re.fullmatch(line, name)) for name in names]
    require(
        any(match for _, match in matches),
        f"{root} has no image {pattern}; INSTALL.md shows the expected layout",
    )
    for name, match in matches:
        if match:
            yield name, {**match.groupdict(), "path": name}


def _taken_apart(
    columns: Mapping[str, str], place: str, entry: Mapping[str, Any]
) -> dict[str, str | None]:
    """Path, class and split of an object or row as texts; only the split may be missing."""
    values = {key: named_value(place, entry, name) for key, name in columns.items()}
    for key in ("path", "class"):
        require(
            any(name.casefold() == columns[key].casefold() for name in entry),
            f"{place}: no {columns[key]!r}; the columns are {shown(entry)}",
        )
        blank = values[key] is None or values[key] == ""
        require(not blank, f"{place}: {columns[key]!r} is empty; fill it in, or remove the row")
    split = values["split"]
    split = None if split is None or split != split else _cell(place, split)  # NaN is no split
    texts = {
        "path": _cell(place, values["path"]),
        "class": class_text(place, values["class"]),
        "split": split or None,
    }
    for key, text in texts.items():
        require(
            "\n" not in (text or ""),
            f"{place}: a line break in {columns[key]!r}; is a quotation mark left open?",
        )
    return texts


def _cell(place: str, value: Any) -> str:
    """The text or the number in a cell, as text."""
    number = type(value) in (int, float)
    require(isinstance(value, str) or number, f"{place}: expected text, got {brief(value)}")
    return stripped(str(value))
