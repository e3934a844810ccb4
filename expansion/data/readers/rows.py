"""Rows of lists (image, class, split), and the reader that makes records of them.

This is the short way to a reader of another kind of list: turn its entries into rows, collect them
in a `Listing` and return a `RowsReader`, which checks them and reports faults.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from expansion.common.errors import InputError, require, shown
from expansion.common.texts import NameIndex, plain, stripped
from expansion.data.naming import look_alikes
from expansion.data.readers.split_folders import split_of
from expansion.data.splits import SplitOptions
from expansion.data.stored_splits import find_stored_split, stored_split
from expansion.images.records import ImageRecord

LONGEST_NUMBER = 20  # digits of the number of a class or an image


@dataclass(frozen=True)
class Row:
    """One line of a list: an image, its class, and what else the line tells.

    Attributes:
        path: Path of the image relative to the dataset's folder, with "/".
        class_name: Name of its class.
        number: Number of its class in the annotations, if they have one; it only decides the order
            of the labels.
        split: The word in the column of the split, or None.
    """

    path: str
    class_name: str
    number: int | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the lists of a dataset say.

    Attributes:
        rows: "train" and "test" -> their rows, or "all" -> rows that are to be split by seed. If
            there are only training rows, the options may ask to split them by seed.
        ignored: Rows of splits that are not used.
        class_order: Names of the classes in label order, if a file gives it; by default they are
            sorted by their numbers or names.
        lacks: Split -> text of the error if it has no rows.
        remarks: Further lines for the user.
    """

    rows: Mapping[str, Sequence[Row]]
    ignored: Sequence[Row] = ()
    class_order: Sequence[str] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()


class RowsReader:
    """A reader of rows; see `expansion.data.readers.folders.Reader`.

    Labels are contiguous over the classes that have training images.

    Args:
        root: The dataset's folder.
        name: Name of the dataset, in the name of a stored split.
        listing: What the lists say.
        options: How to split by seed.

    Raises:
        InputError: There are no training rows, or an image is in both splits. `records` also raises
            it for an image of two classes or one that does not exist.
    """

    spoken_names: Mapping[str, str] = {}
    known_folders: Sequence[str] = ()  # none of its folders has another use

    def __init__(self, root: Path, name: str, listing: Listing, options: SplitOptions):
        rows = listing.rows
        if rows.get("train") and not rows.get("test"):
            stored = None if options.wanted else find_stored_split(root)
            if options.test_fraction is not None or stored:
                rows = {"all": rows["train"]}
        self.root, self.name, self.rows, self.options = root, name, rows, options
        self.listing, self.lacks = listing, listing.lacks
        self.splits_by_seed = "all" in rows
        training = rows.get("all", rows.get("train"))
        require(bool(training), self.lacks.get("train", f"{root}: no training images listed"))
        self._refuse_shared()
        self.class_names = _ordered_classes(training, listing.class_order)
        self._folders: dict[str, NameIndex] = {}

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Lines on choices that were made, and on rows that are not used."""
        unused = [name for name in self.listing.class_order if name not in self.class_names]
        return (
            *self.listing.remarks,
            *ignored_by_split(self.listing.ignored),
            *self._repeated(),
            *counted("class", "classes", unused, "without a training image"),
        )

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
        # Path on disk -> class; an image may be listed twice, but not with two classes.
        labels = {name: label for label, name in enumerate(self.class_names)}
        classes: dict[str, str] = {}
        absent = []
        for row in rows:
            require(
                is_inside(row.path),
                f"{self.root}: the lists name {row.path!r}, outside the folder; "
                "write paths relative to it",
            )
            if row.class_name not in labels:
                raise InputError(
                    f"{self.root}: class {row.class_name!r} of {row.path} has no training images; "
                    f"{_remedy(row.class_name, self.class_names)}"
                )
            path = self._on_disk(row.path)
            absent += [row.path] if path is None else []
            known = classes.setdefault(path or row.path, row.class_name)
            require(
                known == row.class_name,
                f"{self.root}: {row.path} is listed as {known!r} and as {row.class_name!r}",
            )
        # All missing files in one message.
        absent = list(dict.fromkeys(absent))
        slashes = "write / instead of \\ in the list, " if "\\" in "".join(absent) else ""
        require(
            not absent,
            f"{self.root}: {len(absent)} of {len(classes)} listed images are not there: "
            f"{shown(absent)}; {slashes}complete the download, or remove them from the list",
        )
        # One record per image, however often it is listed.
        records = [
            ImageRecord(self.root / path, path, labels[class_name], class_name)
            for path, class_name in classes.items()
        ]
        return sorted(records, key=lambda r: (r.label, r.file_name))

    def _on_disk(self, path: str) -> str | None:
        """The path as it is on disk, maybe in another Unicode form; None if it does not exist."""
        if os.path.isfile(self.root / path):
            return path
        place = ""
        for part in PurePosixPath(path).parts:
            if place not in self._folders:
                self._folders[place] = NameIndex(_names_in(self.root / place))
            name = self._folders[place].find(part)
            if name is None:
                return None
            place = f"{place}/{name}" if place else name
        return place if os.path.isfile(self.root / place) else None

    def _refuse_shared(self) -> None:
        train, test = ({plain(row.path) for row in self.rows.get(s, ())} for s in ("train", "test"))
        shared = sorted(train & test)
        require(
            not shared,
            f"{self.root}: {len(shared)} images are listed for training and for testing: "
            f"{shown(shared)}; keep each in one split",
        )

    def _repeated(self) -> list[str]:
        """A remark on images that are listed twice; `records` refuses those of two classes."""
        counts = Counter(plain(row.path) for rows in self.rows.values() for row in rows)
        again = [path for path, count in counts.items() for _ in range(count - 1)]
        return counted("row", "rows", again, "of images listed already")


def row_path(text: str) -> str:
    """The path of a row in its simplest form: "./a//b.png" names "a/b.png"."""
    return str(PurePosixPath(stripped(text)))


def divided(
    rows: Sequence[Row], source: Path
) -> tuple[dict[str, list[Row]], list[Row], list[str]] | None:
    """Divide rows by the split that they tell; None if no row tells one.

    If there are no rows for testing, those for validation take their place.

    Args:
        rows: All rows of a list.
        source: The list, for errors.

    Returns:
        Split -> rows, the rows of splits that are not used, and remarks.

    Raises:
        InputError: No row is for training.
    """
    if not any(row.split for row in rows):
        return None
    by_split: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_split[split_of(row.split or "")].append(row)
    words = ", ".join(f"{word!r} ({n})" for word, n in Counter(r.split or "" for r in rows).items())
    require(
        bool(by_split["train"]),
        f"{source}: no row is for training; its splits are {words}, the words are train, val, test",
    )
    test = "test" if by_split["test"] or not by_split["val"] else "val"
    used = {"train": by_split["train"], "test": by_split[test]}
    ignored = [row for row in rows if split_of(row.split or "") not in ("train", test)]
    remark = f"tested on: the {len(used['test'])} rows for validation, as there are none for test"
    return used, ignored, [remark] if test == "val" else []


def of_split(rows: Sequence[Row], split: str) -> tuple[list[Row], list[Row]]:
    """Divide the rows of a list file of one split into (those of the split, those of another).

    Args:
        rows: All rows of the file.
        split: "train" or "test".
    """
    allowed = {"train": ("train",), "test": ("test", "val")}[split]
    fits = [row.split is None or split_of(row.split) in allowed for row in rows]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    return kept, [row for row, fit in zip(rows, fits, strict=True) if not fit]


def ignored_by_split(rows: Sequence[Row]) -> list[str]:
    """Remarks on rows that are not used, one for each word in their column of the split."""
    counts = Counter(row.split for row in rows)
    return [
        f"ignored: {n} row{'' if n == 1 else 's'} "
        + (f"with split {word!r}" if word else "without a split")
        for word, n in counts.items()
    ]


def counted(one: str, many: str, names: Sequence[str], what: str) -> list[str]:
    """A remark such as "ignored: 2 rows <what>: a, b" in a list, which is empty without names.

    Args:
        one: Word for one of the things that are not used.
        many: Word for several of them.
        names: Their names.
        what: Why they are not used, or where they are.
    """
    if not names:
        return []
    return [f"ignored: {len(names)} {one if len(names) == 1 else many} {what}: {shown(names)}"]


def is_number(text: str) -> bool:
    """Whether the text is a number that a class or an image may have."""
    return text.isdecimal() and len(text) < LONGEST_NUMBER


def _remedy(class_name: str, known: Sequence[str]) -> str:
    """Advice on a class that has test images only."""
    twins = [name for name in known if look_alikes([class_name, name])]
    if twins:
        return f"it looks like {twins[0]!r}: write one name if they are one class"
    return "mark some for training, or remove the row"


def is_inside(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in path.split("/")


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # there is none, or no folder can have that name
        return []


def _ordered_classes(rows: Iterable[Row], class_order: Sequence[str]) -> tuple[str, ...]:
    """The classes of the rows, in the order of the list, else by their numbers, else by name."""
    numbers: dict[str, int | None] = {}
    for row in rows:
        numbers.setdefault(row.class_name, row.number)
    if class_order:
        return tuple(name for name in class_order if name in numbers)
    if None not in numbers.values():
        return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))
    if all(map(is_number, numbers)):
        return tuple(sorted(numbers, key=lambda name: (int(name), name)))
    return tuple(sorted(numbers))
