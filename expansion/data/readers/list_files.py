"""Reads list files of datasets (text, JSON, JSON lines, CSV) as pairs (place, entry).

The place names file and line for errors. The entry is a line of text, or an object of named values.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from expansion.common.errors import JSON_ERRORS, InputError, brief, require, shown
from expansion.common.texts import parse_json, plain, read_json, stripped

TABLES = (".csv", ".tsv")
DELIMITERS = ",;\t"
# A line that is added to every table: if it is no row of its own, a quotation mark was left open.
END = "(end of the table)"


def read_list(root: Path, source: str) -> Iterator[tuple[str, Any]]:
    """The pairs (place, text or object) of a list file, whose suffix tells its form.

    Args:
        root: The dataset's folder.
        source: Path of the file below it.

    Raises:
        InputError: The file is missing, is no text, or has a line of another form.
    """
    suffix = PurePosixPath(source).suffix.lower()
    if suffix == ".json":
        return _json_items(root, source)
    if suffix in TABLES:
        return _table(root, source)
    if suffix == ".jsonl":
        return _json_lines(root, source)
    return text_lines(root, source)


def text_lines(root: Path, name: str, comments: bool = True) -> Iterator[tuple[str, str]]:
    """The pairs (place, line) of a text file, without blank lines.

    Args:
        root: The dataset's folder.
        name: Path of the file below it.
        comments: Also leave out lines that begin with #.
    """
    for number, line in enumerate(_text(root, name).split("\n"), start=1):
        line = stripped(line)
        if line and not (comments and line.startswith("#")):
            yield f"{root / name}, line {number}", line


def pairs(root: Path, name: str | None) -> dict[str, str]:
    """Key -> value, from a file of lines '<key> <value>'.

    Args:
        root: The dataset's folder.
        name: Path of the file below it; None gives an empty dictionary.

    Raises:
        InputError: A line has no value, or a key has two values.
    """
    values: dict[str, str] = {}
    for place, line in text_lines(root, name) if name is not None else ():
        key, _, value = plain(line).replace("\t", " ").partition(" ")
        value = stripped(value)
        require(bool(value), f"{place}: {line!r}: expected a key and a value")
        known = values.setdefault(key, value)
        require(known == value, f"{place}: {key} is {value!r} here, but {known!r} further up")
    return values


def lack(root: Path, split: str, names: Iterable[str]) -> str:
    """The text of the error for missing label files, with the folder where they seem to be.

    Args:
        root: The dataset's folder.
        split: Which images have no labels, such as "training" or "test".
        names: Paths of the files below `root`.
    """
    names = list(names)
    first = PurePosixPath(names[0])
    for place in (root.parent, *sorted(p for p in root.iterdir() if p.is_dir())):
        if (place / first).is_file():
            return f"{root} has no {first}, but {place} has: lay the dataset one level differently"
    return (
        f"{root} lacks the labels of the {split} images: {' or '.join(names)}; "
        "INSTALL.md shows the expected layout"
    )


def named_value(place: str, entry: Mapping[str, Any], column: str) -> Any:
    """The value of a column in an object or row, whatever the case of its name; None without it.

    Args:
        place: Where the entry comes from, for the error.
        entry: Column -> value.
        column: Name of the column.

    Raises:
        InputError: Several columns have that name.
    """
    keys = [key for key in entry if key.casefold() == column.casefold()]
    require(len(keys) < 2, f"{place}: {' and '.join(map(repr, keys))} are one column; keep one")
    return entry[keys[0]] if keys else None


def _text(root: Path, name: str) -> str:
    path = root / name
    require(path.is_file(), lack(root, "training", [name]))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path} as UTF-8 text: {error}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _json_items(root: Path, name: str) -> Iterator[tuple[str, Any]]:
    path = root / name
    require(path.is_file(), lack(root, "training", [name]))
    for number, item in enumerate(read_json(path, list), start=1):
        place = f"{path}, item {number}"
        yield place, _entry(place, item)


def _json_lines(root: Path, name: str) -> Iterator[tuple[str, Any]]:
    for place, line in text_lines(root, name, comments=False):
        try:
            entry = parse_json(line)
        except JSON_ERRORS as error:
            raise InputError(f"{place}: no JSON ({error})") from error
        yield place, _entry(place, entry)


def _entry(place: str, entry: Any) -> str | dict[str, Any]:
    """An entry without blanks around it: a text, or an object with its keys."""
    if isinstance(entry, str):
        return stripped(entry)
    require(isinstance(entry, dict), f"{place}: expected text or an object, got {brief(entry)}")
    return dict(zip(_distinct_columns(place, list(entry)), entry.values(), strict=True))


def _table(root: Path, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The pairs (place, column -> cell) of a table; rows of blank cells are left out."""
    path, text = root / name, _text(root, name)
    lines = io.StringIO(f"{text}\n{END}", newline="\n")
    # Blanks before a quotation mark are skipped; those after cells are stripped here.
    reader = csv.reader(lines, delimiter=_delimiter(text), skipinitialspace=True)
    columns: Sequence[str] | None = None
    try:
        for place, cells in _placed(path, reader):
            cells = [stripped(cell) for cell in cells]
            if not any(cells) or cells == [END]:
                continue
            require(END not in cells[-1], f"{place}: a quotation mark is opened and never closed")
            if columns is None:
                columns = _distinct_columns(place, cells)
                continue
            require(
                len(cells) == len(columns),
                f"{place}: {len(cells)} cells, but the header has {len(columns)} "
                f"({shown(columns)}); put cells that hold the separator in quotation marks",
            )
            yield place, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"cannot read {path} as CSV: line {reader.line_num}: {error}") from error


def _placed(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """The pairs (place, cells) of a csv reader; for a row of several lines the first one counts."""
    first = 1
    for cells in reader:
        yield f"{path}, line {first}", cells
        first = reader.line_num + 1


def _delimiter(text: str) -> str:
    """The separator of a table: the first of `DELIMITERS` that occurs in its first line."""
    header = stripped(text).partition("\n")[0]
    return next((sign for sign in DELIMITERS if sign in header), ",")


def _distinct_columns(place: str, names: Sequence[Any]) -> list[str]:
    """Names of columns in their plain form; raises InputError if one occurs twice."""
    columns = [plain(name) for name in names]
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    require(not twice, f"{place}: the column {shown(map(repr, twice))} occurs twice; keep one")
    return columns
