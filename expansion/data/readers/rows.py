"""Rows of lists (image, class, split), and the reader that makes records of them."""

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
from expansion.data.splits import SplitOptions, find_stored_split, stored_split
from expansion.images.records import ImageRecord

LONGEST_NUMBER = 20  # digits of a class's or image's number


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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the lists of a dataset say.

    Attributes:
        rows: Split -> its rows; "all" where the split is made by seed. Training rows alone are
            split where the options give a test fraction.
        ignored: Rows of no split that is used.
        class_order: Class names in label order, where a file gives it; else by number or name.
        lacks: Split -> why it has no rows.
        remarks: What else the user is to be told, a line each.
    """

    rows: Mapping[str, Sequence[Row]]
    ignored: Sequence[Row] = ()
    class_order: Sequence[str] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()


class RowsReader:
    """Records from rows. Labels are contiguous over the classes that have training images.

    Raises:
        InputError: No training rows, or an image in two splits or of two classes.
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
        """What was chosen and what is not used, a line each."""
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
        labels = {name: label for label, name in enumerate(self.class_names)}
        classes: dict[str, str] = {}
        absent = []
        for row in rows:
            require(
                _is_inside(row.path),
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
        absent = list(dict.fromkeys(absent))
        slashes = "write / instead of \\ in the list, " if "\\" in "".join(absent) else ""
        require(
            not absent,
            f"{self.root}: {len(absent)} of {len(classes)} listed images are not there: "
            f"{shown(absent)}; {slashes}complete the download, or remove them from the list",
        )
        found = [
            ImageRecord(self.root / path, path, labels[class_name], class_name)
            for path, class_name in classes.items()
        ]
        return sorted(found, key=lambda r: (r.label, r.file_name))

    def _on_disk(self, path: str) -> str | None:
        """The path as the disk has it, which may write the same name in another Unicode form."""
        if os.path.isfile(self.root / path):
            return path
        found = ""
        for part in PurePosixPath(path).parts:
            if found not in self._folders:
                self._folders[found] = NameIndex(_names_in(self.root / found))
            name = self._folders[found].find(part)
            if name is None:
                return None
            found = f"{found}/{name}" if found else name
        return found if os.path.isfile(self.root / found) else None

    def _refuse_shared(self) -> None:
        train, test = ({plain(row.path) for row in self.rows.get(s, ())} for s in ("train", "test"))
        shared = sorted(train & test)
        require(
            not shared,
            f"{self.root}: {len(shared)} images are listed for training and for testing: "
            f"{shown(shared)}; keep each in one split",
        )

    def _repeated(self) -> list[str]:
        """That images are listed twice; with two classes they are refused in `records`."""
        counts = Counter(plain(row.path) for rows in self.rows.values() for row in rows)
        again = [path for path, count in counts.items() for _ in range(count - 1)]
        return counted("row", "rows", again, "of images listed already")


def row_path(text: str) -> str:
    """The path of a row in its simplest form: "./a//b.png" names "a/b.png"."""
    return str(PurePosixPath(stripped(text)))


def divided(
    rows: Sequence[Row], source: Path
) -> tuple[dict[str, list[Row]], list[Row], list[str]] | None:
    """(split -> rows, rows of no split that is used, remarks); None if no row tells its split.

    Rows for validation are tested on where there are none for testing.

    Args:
        source: The list, for errors.

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
    """(rows of the list file of a split, rows in it whose own word says another split)."""
    allowed = {"train": ("train",), "test": ("test", "val")}[split]
    fits = [row.split is None or split_of(row.split) in allowed for row in rows]
    kept = [row for row, fit in zip(rows, fits) if fit]
    return kept, [row for row, fit in zip(rows, fits) if not fit]


def ignored_by_split(rows: Sequence[Row]) -> list[str]:
    """A remark for each word in the split column of rows that are not used."""
    counts = Counter(row.split for row in rows)
    return [
        f"ignored: {n} row{'' if n == 1 else 's'} "
        + (f"with split {word!r}" if word else "without a split")
        for word, n in counts.items()
    ]


def counted(one: str, many: str, names: Sequence[str], what: str) -> list[str]:
    """The remark that these are not used, or none: "ignored: 2 rows that ...: a, b"."""
    if not names:
        return []
    return [f"ignored: {len(names)} {one if len(names) == 1 else many} {what}: {shown(names)}"]


def is_number(text: str) -> bool:
    """Whether the text is a number of a size that a class or an image can have."""
    return text.isdecimal() and len(text) < LONGEST_NUMBER


def _remedy(class_name: str, known: Sequence[str]) -> str:
    """What to do about a class that is only tested on."""
    twins = [name for name in known if look_alikes([class_name, name])]
    if twins:
        return f"it looks like {twins[0]!r}: write one name if they are one class"
    return "mark some for training, or remove the row"


def _is_inside(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in path.split("/")


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # there is none, or no folder can have that name
        return []


def _ordered_classes(rows: Iterable[Row], class_order: Sequence[str]) -> tuple[str, ...]:
    """Classes that occur: in the order of the list, else by number, else by name."""
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
