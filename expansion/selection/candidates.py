"""What `python -m expansion.evaluate` and the method left of every image of a set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS, InputError, brief, require, shown
from expansion.common.texts import read_json
from expansion.images.content import content_summary
from expansion.measures.output import FORMAT, IMAGES_FILE
from expansion.measures.sets import ImageSet, Measured
from expansion.metrics.set_figures import FIGURES_FILE
from expansion.selection.rules import Candidate
from expansion.store.manifest import read_manifest

# Of a line of the evaluation, what is no figure, beside the names of nearest images.
TEXTS = ("file_name", "sha256", "class", "source")


def read_candidates(measured: Measured, command: str) -> tuple[list[Candidate], dict[str, Any]]:
    """The images of a set with their figures, sorted by file name, and what measured them.

    Args:
        measured: One set and the real images, with their contents, as they are now.
        command: What measures the set, for errors.

    Raises:
        InputError: The set was not measured, or images were made or changed since, or the test
            images did, or a figure is no number.
    """
    image_set = measured.sets[0]
    # What is known of the set as a whole: copies, leaks and twins by name.
    folder = image_set.folder
    remedy = f"run {command}"
    for name in (FIGURES_FILE, IMAGES_FILE):
        require((folder / name).is_file(), f"{folder} was not measured yet; {remedy}")
    path = folder / FIGURES_FILE
    content = read_json(path, dict)
    require(content.get("format") == FORMAT, f"{path} is of another version; {remedy}")
    try:
        copies, leaks = ({each["file_name"] for each in content[k]} for k in ("copies", "leaks"))
        twins = {each["file_name"]: each["of"] for each in content["twins"]}
        measured_by = {k: content["settings"][k] for k in ("features", "labels_judged_by")}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no measurement ({error}); {remedy}") from error
    test_images = content.get("test_images")  # older versions did not write it
    require(
        test_images in (None, content_summary(measured.test)),
        f"{folder} was measured against other test images than there are now; {remedy}",
    )

    # What is known of each image, by the evaluation and by the method.
    rows = _read_rows(folder / IMAGES_FILE, remedy)
    _check_same_images(image_set, rows, remedy)
    details = {row["file_name"]: row.get("details", {}) for row in read_manifest(folder)}
    names = {record.file_name for record in image_set.images}
    candidates = [
        Candidate(
            file_name=record.file_name,
            class_name=record.class_name,
            sha256=record.content,
            figures=_numbers({**details.get(record.file_name, {}), **rows[record.file_name]}),
            is_copy=record.file_name in copies,
            is_leak=record.file_name in leaks,
            twin=twins[record.file_name] if twins.get(record.file_name) in names else None,
        )
        for record in image_set.images
    ]
    return candidates, measured_by


def _check_same_images(
    image_set: ImageSet, rows: Mapping[str, Mapping[str, Any]], remedy: str
) -> None:
    """Raise InputError unless every image is the one that was measured."""
    new = [r.file_name for r in image_set.images if r.file_name not in rows]
    changed = [
        r.file_name
        for r in image_set.images
        if r.file_name in rows
        and (rows[r.file_name].get("sha256"), rows[r.file_name].get("class"))
        != (r.content, r.class_name)
    ]
    for names, fault in ((new, "were not measured"), (changed, "have changed since")):
        require(
            not names,
            f"{image_set.folder}: {len(names)} images {fault} ({shown(names, 3)}); {remedy}",
        )


def _read_rows(path: Path, remedy: str) -> dict[str, dict[str, Any]]:
    """Line by line; none may hold a number that is not finite."""
    rows = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line, parse_constant=_refuse)
                _check_figures(row)
                rows[row["file_name"]] = row
            except (*JSON_ERRORS, KeyError, TypeError) as error:
                message = f"{path}, line {number}: no measurement of an image ({error}); {remedy}"
                raise InputError(message) from error
    return rows


def _check_figures(row: Mapping[str, Any]) -> None:
    """Raise ValueError for a figure that is no finite number; null stands for one not known."""
    for name, value in row.items():
        if name in TEXTS or name.endswith(("_nearest", "recognised_as")) or value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} is {brief(value)}")


def _refuse(constant: str) -> None:
    raise ValueError(f"a figure is {constant}")


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if type(value) in (int, float) and math.isfinite(value)
    }
