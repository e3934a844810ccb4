"""Labels with probabilities, which any tool may write for generated images.

The file has a JSON object a line. The first names the classes, in the order of the probabilities:

    {"class_names": ["ant", "bee"]}
    {"file_name": "ant/1_expand_0.png", "soft_label": [0.9, 0.1]}

Sets by several methods have the same file names. A row may say which image it is of by a further
key, `sha256`, of the image's file in hexadecimal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS, InputError, brief, require, shown
from expansion.common.texts import parse_json
from expansion.images.records import ImageRecord

ROUNDING = 1e-3  # by which a sum of rounded probabilities may miss 1


def with_soft_labels(
    records: Sequence[ImageRecord], path: Path, class_names: Sequence[str]
) -> list[ImageRecord]:
    """The records, those that the file names with its probabilities.

    Args:
        records: Generated images with their `content`; the file may name others too.
        path: See above.
        class_names: Of the dataset, by label.

    Raises:
        InputError: The file names no image of these, has other classes or another order of them, or
            a row of it is no distribution over them, or is of an image with another `sha256`; names
            the line.
    """
    labels, contents = read_soft_labels(path, class_names)
    others = [r.file_name for r in records if contents.get(r.file_name, r.content) != r.content]
    require(
        not others,
        f"{path} is of other images: {len(others)} have another sha256 here ({shown(others, 3)}); "
        "make it for this set",
    )
    require(
        any(record.file_name in labels for record in records),
        f"{path} names none of the {len(records)} generated images; names are those of the "
        f"expanded set, such as {records[0].file_name}",
    )
    return [dataclasses.replace(r, soft_label=labels.get(r.file_name)) for r in records]


def read_soft_labels(
    path: Path, class_names: Sequence[str]
) -> tuple[dict[str, tuple[float, ...]], dict[str, str]]:
    """Probabilities, and the SHA-256 that rows give, by file name; raises as above."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read soft_labels {path}: {error}") from error
    places = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1)]
    rows = [(place, _object(place, line)) for place, line in places if line.strip()]
    names = rows[0][1].get("class_names") if rows else None
    require(
        isinstance(names, list),
        f'{path}: the first line has to name the classes: {{"class_names": [...]}}',
    )
    require(
        names == list(class_names),
        f"{path}: its class_names are {_listed(names)}, those of the dataset {_listed(class_names)}"
        "; probabilities have to stand in this order",
    )
    labels: dict[str, tuple[float, ...]] = {}
    contents: dict[str, str] = {}
    for place, row in rows[1:]:
        name = row.get("file_name")
        require(isinstance(name, str), f"{place}: file_name is missing")
        require(name not in labels, f"{place}: {name} occurs twice")
        labels[name] = _distribution(place, row.get("soft_label"), len(class_names))
        if "sha256" in row:
            contents[name] = row["sha256"]
    return labels, contents


def _object(place: str, line: str) -> Mapping[str, Any]:
    try:
        row = parse_json(line)
    except JSON_ERRORS as error:
        raise InputError(f"{place}: no JSON: {error}") from error
    require(isinstance(row, dict), f"{place}: expected an object, got {brief(row)}")
    return row


def _distribution(place: str, value: Any, num_classes: int) -> tuple[float, ...]:
    require(
        isinstance(value, list) and len(value) == num_classes,
        f"{place}: soft_label has to be a list of {num_classes} probabilities, got {brief(value)}",
    )
    require(
        all(type(p) in (int, float) and math.isfinite(p) and p >= 0 for p in value),
        f"{place}: soft_label holds what is no probability: {brief(value)}",
    )
    total = math.fsum(value)
    require(
        abs(total - 1) <= ROUNDING, f"{place}: the probabilities of soft_label add up to {total:g}"
    )
    return tuple(p / total for p in value)


def _listed(names: Sequence[Any]) -> str:
    return f"{len(names)} ({shown([str(name) for name in names], 4)})"
