"""What a measurement leaves: a table of all sets, and two files beside each of them.

    <set>/evaluation.json    figures, settings, classes, copies and leaks by name
    <set>/evaluation.jsonl   a line for each image: what is known of it, with the image's SHA-256

No loader takes them for images and no command for part of the set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expansion.common.errors import one_line, shown
from expansion.common.files import write_atomic
from expansion.common.tables import aligned
from expansion.images.content import content_summary
from expansion.images.records import ImageRecord
from expansion.measures.evaluation import Evaluation
from expansion.measures.sets import Measured
from expansion.metrics.set_figures import FIGURES_FILE

IMAGES_FILE = "evaluation.jsonl"
FORMAT = 1


def table(evaluations: Sequence[Evaluation], paper: str | None) -> str:
    """One aligned row per set.

    Args:
        paper: What the papers' Frechet column is called, with its number of images; None: it was
            not asked for.
    """
    with_clip = any(each.by_clip for each in evaluations)
    columns = _columns(paper, with_clip)
    rows = [["set", *columns]]
    for each in evaluations:
        figures = each.figures()
        rows.append([one_line(each.image_set.name), *(show(figures) for show in columns.values())])
    return aligned(rows)


def _columns(paper: str | None, with_clip: bool) -> dict[str, Any]:
    """Title of a column -> function from the figures of a set to its cell."""
    columns: dict[str, Any] = {
        "images": lambda f: str(f["images"]),
        "KID x1e3": lambda f: _with_error(f["kid"], f["kid_error"], 2),
        "p": lambda f: _number(f["p_value"], "{:.3f}"),
        "CMMD x1e3": lambda f: _with_error(f["cmmd"], f["cmmd_error"], 3),
        "coverage": lambda f: _number(f["coverage"], "{:.2f}"),
        "density": lambda f: _number(f["density"], "{:.2f}"),
        "KID by class": lambda f: _number(1000 * f["class_kid"], "{:.2f}"),
        "coverage by class": lambda f: _number(f["class_coverage"], "{:.2f}"),
        "recognised (%)": lambda f: _number(100 * f["recognised"], "{:.1f}"),
    }
    if with_clip:
        columns["by CLIP (%)"] = lambda f: _number(100 * f["clip_recognised"], "{:.1f}")
    columns |= {
        "entropy": lambda f: _number(f["entropy"], "{:.2f}"),
        "copies": lambda f: str(f["copies"]),
        "leaks": lambda f: str(f["leaks"]),
        "twins": lambda f: str(f["twins"]),
    }
    if paper:
        frechet, mmd = paper, paper.replace(paper.split("@")[0], "MMD")
        columns[frechet] = lambda f: _number(f.get("paper_frechet", math.nan), "{:.2f}")
        columns[mmd] = lambda f: _number(f.get("paper_mmd", math.nan), "{:.3f}")
    return columns


def worst_lines(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[str]:
    """The worst classes of every expanded set, a line each."""
    lines = []
    for each in evaluations:
        if each.image_set.folder is None:
            continue
        by_class = each.by_class(names)
        parts = []
        for figure, title, factor in (
            ("kid", "KID x1e3", 1000),
            ("coverage", "coverage", 1),
            ("recognised", "recognised", 1),
        ):
            worst = each.worst(names)[figure]
            cells = [f"{one_line(n)} {factor * by_class[n][figure]:.2f}" for n in worst]
            parts += [f"{title}: {', '.join(cells)}"] if cells else []
        lines.append(f"{each.image_set.name}, worst classes by {'; by '.join(parts)}")
    return lines


def write_evaluation(
    evaluation: Evaluation,
    measured: Measured,
    settings: Mapping[str, Any],
    zero_lines: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write both files of an expanded set.

    Args:
        measured: Gives the names of the real images.
        settings: What the figures depend on.
        zero_lines: Figures of real images in place of generated ones, by their names.
    """
    folder = evaluation.image_set.folder
    assert folder is not None, "real images have no folder of their own"
    names = measured.dataset.class_names
    near, limits = evaluation.nearness, evaluation.limits
    rows = image_rows(evaluation, measured)
    content = {
        "format": FORMAT,
        "dataset": measured.dataset.name,
        "set": evaluation.image_set.name,
        "generated": content_summary(evaluation.image_set.images),
        "test_images": content_summary(measured.test),
        "settings": dict(settings),
        "figures": evaluation.figures(),
        "zero_lines": {name: dict(figures) for name, figures in zero_lines.items()},
        "classes": evaluation.by_class(names),
        "worst_classes": evaluation.worst(names),
        "limits": {"copy": limits.copy, "leak": limits.leak},
        "copies": [_named(rows[i], "source", "train") for i in near.copies(limits)],
        "leaks": [_named(rows[i], "test") for i in near.leaks(limits)],
        "twins": [_named(rows[i], "twin") for i in near.twins(limits)],
    }
    lines = "".join(f"{_json(row)}\n" for row in rows)
    write_atomic(folder / IMAGES_FILE, lines)
    write_atomic(folder / FIGURES_FILE, _json(content, indent=1) + "\n")


def image_rows(evaluation: Evaluation, measured: Measured) -> list[dict[str, Any]]:
    """What is known of every image, by its name in the set and the SHA-256 of its file."""
    images, near = evaluation.image_set.images, evaluation.nearness
    rows = []
    for i, record in enumerate(images):
        row = {
            "file_name": record.file_name,
            "sha256": record.content,
            "class": record.class_name,
            "source": record.source,
            "source_distance": _plain(near.source[i]),
            "train_distance": _plain(near.train[i]),
            "train_nearest": _name(measured.train, near.train_index[i]),
            "test_distance": _plain(near.test[i]),
            "test_nearest": _name(measured.test, near.test_index[i]),
            "twin_distance": _plain(near.twin[i]),
            "twin_nearest": _name(images, near.twin_index[i]),
        }
        for title, found in (("", evaluation.judged), ("clip_", evaluation.by_clip)):
            if found is not None:
                row[f"{title}own_probability"] = _plain(found.own[i])
                row[f"{title}entropy"] = _plain(found.entropy[i])
                predicted = measured.dataset.class_names[found.predicted[i]]
                row[f"{title}recognised_as"] = predicted
        rows.append(row)
    return rows


def listed(evaluations: Sequence[Evaluation]) -> list[str]:
    """Lines on copies and leaks of expanded sets, the nearest named."""
    lines = []
    for each in evaluations:
        folder, near, images = each.image_set.folder, each.nearness, each.image_set.images
        if folder is None:
            continue
        for title, found in (
            ("copies", near.copies(each.limits)),
            ("leaks", near.leaks(each.limits)),
        ):
            if len(found):
                names = shown((images[i].file_name for i in found), 3)
                lines.append(f"{each.image_set.name}: {len(found)} {title}, the nearest {names}")
    return lines


def _named(row: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
    """An image with the nearest of some real images."""
    distances = {kind: row[f"{kind}_distance"] for kind in kinds}
    known = [kind for kind, distance in distances.items() if distance is not None]
    kind = min(known, key=lambda each: distances[each])
    nearest = row["source"] if kind == "source" else row[f"{kind}_nearest"]
    return {"file_name": row["file_name"], "of": nearest, "distance": distances[kind]}


def _name(records: Sequence[ImageRecord], index: int) -> str | None:
    return records[index].file_name if index >= 0 else None


def _plain(value: Any) -> float | None:
    """For JSON, which has no NaN: 6 digits, or nothing."""
    return None if np.isnan(value) else float(f"{value:.6g}")


def _json(content: Any, indent: int | None = None) -> str:
    return json.dumps(_without_nan(content), ensure_ascii=False, indent=indent, allow_nan=False)


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _with_error(value: float, error: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    spread = "" if math.isnan(error) else f" +- {1000 * error:.{digits}f}"
    return f"{1000 * value:.{digits}f}{spread}"
