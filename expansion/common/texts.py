"""Texts that people and other programs wrote: names with blanks around them, numbers as classes.

Two names are one where they differ only in blanks around them or in their Unicode form (an accent
as a letter of its own, as macOS stores file names); `plain` is the form that is compared.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS, InputError, brief, require

# What shows as nothing: soft hyphen, zero-width blanks and joiners, marks of direction, BOM.
INVISIBLE = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + INVISIBLE
WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9][0-9]{0,15}))\.0+")  # "1.0" of a spreadsheet
LARGEST_WHOLE = 2**53  # beyond it a float holds no exact whole number
# What programs write where there is no value; "None" and "NA" are names of classes elsewhere.
NO_VALUE = frozenset(("nan", "NaN", "null", "NULL", "<NA>", "#N/A"))


def stripped(text: str) -> str:
    """`text` without blanks around it, those included that show as nothing."""
    return text.strip(BLANKS)


def plain(text: str) -> str:
    """The form of a name that is compared: without blanks around it, composed (NFC)."""
    return unicodedata.normalize("NFC", stripped(text))


def class_text(place: str, value: Any) -> str:
    """A class as its name: text in its plain form, a whole number as its integer.

    So 1, 1.0, "1" and "1.0" are one class, whatever file they stand in; "001" is another.

    Args:
        place: File and line, for errors.

    Raises:
        InputError: No value (null, NaN, blank), a boolean, or what is no text and no number.
    """
    remedy = "write its name, or remove the row"
    missing = value is None or (type(value) is float and math.isnan(value))
    text = plain(value) if isinstance(value, str) else None
    require(not missing and text != "", f"{place}: the class is missing; {remedy}")
    require(text not in NO_VALUE, f"{place}: the class is {text!r}, which is no value; {remedy}")
    if text is not None:
        whole = WHOLE_FLOAT.fullmatch(text)
        return str(int(whole[1])) if whole else text
    require(
        type(value) in (int, float),
        f"{place}: the class is {brief(value)}; write it as text or as a whole number",
    )
    require(
        math.isfinite(value) and abs(value) < LARGEST_WHOLE,
        f"{place}: the class is {brief(value)}, too large a number; write it as text",
    )
    return str(int(value)) if float(value).is_integer() else str(value)


class NameIndex:
    """Names that are there, found by a name as somebody wrote it."""

    def __init__(self, names: Iterable[str]):
        self._names = dict.fromkeys(names)
        self._by_plain: dict[str, str | None] = {}
        for name in self._names:
            key = plain(name)
            self._by_plain[key] = None if key in self._by_plain else name

    def find(self, name: str) -> str | None:
        """The very name, else the only one of the same plain form, else None."""
        return name if name in self._names else self._by_plain.get(plain(name))


def keyed_by(names: Iterable[str], given: Mapping[Any, Any], place: str) -> dict[Any, Any]:
    """`given` with each key as the name that it means; keys that mean none stay as they are.

    Whole numbers are their digits, as YAML reads 1 as a number.

    Raises:
        InputError: Two keys mean one name.
    """
    index = NameIndex(names)
    found: dict[Any, Any] = {}
    for key, value in given.items():
        text = str(key) if type(key) is int and abs(key) < LARGEST_WHOLE else key
        name = index.find(text) if isinstance(text, str) else None
        meant = key if name is None else name
        require(meant not in found, f"{place}: {brief(meant)} occurs twice; keep one")
        found[meant] = value
    return found


def parse_json(text: str) -> Any:
    """`json.loads` that refuses an object with one key twice, of which it would drop the first.

    Raises what `expansion.common.config.JSON_ERRORS` names.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} occurs twice")
    return found


def read_json(path: Path, kind: type | tuple[type, ...]) -> Any:
    """A JSON file of the given top-level type. Raises InputError, naming it, otherwise."""
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, *JSON_ERRORS) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join("an object" if k is dict else "a list" for k in kinds)
    require(isinstance(found, kinds), f"{path}: expected {expected}, got {brief(found)}")
    return found
