"""Images of the page: variants beside their real image, and what self-training made of them.

Every image is a small one inside the page; together they stay below a budget of bytes.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from expansion.common.errors import JSON_ERRORS, InputError
from expansion.images.records import ImageRecord
from expansion.report.sets import ExpandedSet, set_folder
from expansion.report.verdict import Arm

SIDE = 112  # pixels of the longer side of what is kept; half of it or more is shown
SMALL = 64  # images up to this size are kept as they are
USUAL_BYTES = 5_000  # of an image in the page
BUDGET = 3_000_000  # bytes of all images of a page
VARIANTS = 3  # of each real image and method
FEW_CLASSES = 6  # up to so many, two real images of each are shown
PAGE_IMAGES = 12  # beside each other on a wide screen
MOST_BESIDE = 3  # tables of images
SELF_TRAINING_CLASSES = 10
SELF_TRAINING_IMAGES = 5  # accepted ones of a class, and rejected ones
PSEUDO_LABELS = "pseudo_labels.jsonl"


@dataclass(frozen=True)
class Thumbnail:
    """An image inside the page.

    Attributes:
        data: URI; "" where there is no image to show.
        alt: What it is.
        caption: Under it.
        small: Whether it is to be enlarged without smoothing.
    """

    data: str
    alt: str
    caption: str = ""
    small: bool = False


@dataclass(eq=False)
class Gallery:
    """Rows of images.

    Attributes:
        headings: Of the columns, "real" first.
        rows: (class, one list of thumbnails per column).
        notes: What is left out, and what to look for.
    """

    headings: list[str]
    rows: list[tuple[str, list[list[Thumbnail]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[list[tuple[str, list[list[Thumbnail]]]]]:
        """The rows in tables of equal height, as many as have room beside each other."""
        widest = max((sum(map(len, columns)) for _, columns in self.rows), default=1)
        number = max(1, min(MOST_BESIDE, PAGE_IMAGES // (widest + 1)))
        height = -(-len(self.rows) // number) or 1
        return [self.rows[i : i + height] for i in range(0, len(self.rows), height)]


@dataclass
class Budget:
    """Bytes that are left for images."""

    num_bytes: float = BUDGET

    @property
    def count(self) -> int:
        """Images that fit."""
        return max(0, int(self.num_bytes / USUAL_BYTES))

    def thumbnail(self, record: ImageRecord | None, alt: str, caption: str = "") -> Thumbnail:
        """The image made small; an empty one where it is missing or there is no room."""
        if record is None or self.num_bytes <= 0:
            return Thumbnail("", f"{alt}: not shown", caption)
        try:
            image = record.load()
        except InputError:
            return Thumbnail("", f"{alt}: cannot be read", caption)
        encoded, kind = _encoded(image)
        data = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
        self.num_bytes -= len(data)
        return Thumbnail(data, alt, caption, max(image.size) <= SMALL)


def _encoded(image: Image.Image) -> tuple[bytes, str]:
    content = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(content, "PNG", optimize=True)
        return content.getvalue(), "png"
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(content, "JPEG", quality=80, optimize=True)
    return content.getvalue(), "jpeg"


def variants_beside_real(sets: Sequence[ExpandedSet], budget: Budget) -> Gallery:
    """A row per real image, with the first variants that each set has of it."""
    real, problem = _real_images(sets)
    gallery = Gallery([*(["real"] if real else []), *(each.name for each in sets)])
    if problem:
        gallery.notes.append(f"Real images are not shown: {problem}.")
    classes = _sources_by_class(sets)
    shapes = [(2, VARIANTS)] if len(classes) <= FEW_CLASSES else []
    shapes += [(1, number) for number in range(VARIANTS, 0, -1)]
    for num_rows, num_variants in shapes:
        if len(classes) * num_rows * (1 + num_variants * len(sets)) <= budget.count:
            break
    room = budget.count // max(1, num_rows * (1 + num_variants * len(sets)))
    shown = spread(list(classes), max(1, room))
    if len(shown) < len(classes):
        gallery.notes.append(
            f"{len(shown)} of {len(classes)} classes are shown, to keep the page small."
        )
    for class_name in shown:
        for source in classes[class_name][:num_rows]:
            shot = real.get(source)
            columns = [[budget.thumbnail(shot, f"real image of {class_name}")]] if real else []
            for each in sets:
                found = (each.rows.get((source, k)) for k in range(num_variants))
                alt = f"variant by {each.name} of an image of {class_name}"
                columns.append([budget.thumbnail(_record(each, row), alt) for row in found if row])
            gallery.rows.append((class_name, columns))
    if len(sets) > 1:
        gallery.notes.append(_noise(sets))
    return gallery


def _record(made: ExpandedSet, row: Mapping[str, Any]) -> ImageRecord | None:
    """The image of a manifest row; None for one that would lie outside the set."""
    try:
        return made.record(row)
    except InputError:
        return None


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _real_images(sets: Sequence[ExpandedSet]) -> tuple[dict[str, ImageRecord], str]:
    """Of the first set that finds them; else why none does."""
    problems = []
    for each in sets:
        try:
            return each.real_images(), ""
        except (InputError, OSError) as error:
            problems.append(str(error))
    return {}, problems[0]


def _sources_by_class(sets: Sequence[ExpandedSet]) -> dict[str, list[str]]:
    """Real images of each class in the order of their labels; those that most sets share first."""
    counts: dict[str, int] = {}
    labels: dict[str, int] = {}
    classes: dict[str, set[str]] = {}
    for each in sets:
        for source in {source for source, _ in each.rows}:
            counts[source] = counts.get(source, 0) + 1
        for (source, _), row in each.rows.items():
            label = row.get("label")
            labels.setdefault(row["class"], label if type(label) is int else 0)
            classes.setdefault(row["class"], set()).add(source)
    names = sorted(classes, key=lambda name: (labels[name], name))
    return {n: sorted(classes[n], key=lambda source: (-counts[source], source)) for n in names}


def _noise(sets: Sequence[ExpandedSet]) -> str:
    """Whether variants beside each other began from the same noise."""
    pairs = set.intersection(*(set(each.rows) for each in sets))
    seeds = [{each.rows[pair].get("seed") for each in sets} for pair in pairs]
    if seeds and all(len(each) == 1 for each in seeds):
        return "Variants in one row and place began from the same noise, whatever the method."
    return "The sets were made with different seeds, or of different images: noise is not the same."


@dataclass(eq=False)
class Judged:
    """What self-training made of the generated images of one run.

    Attributes:
        title: Of the arm.
        summary: Numbers, as a sentence.
        gallery: Rows: label of the real image; columns: accepted, rejected.
        shares: (class, images, accepted, accepted under another label).
    """

    title: str
    summary: str
    gallery: Gallery
    shares: list[tuple[str, int, int, int]]


def judged_by_self_training(arm: Arm, sets: Sequence[ExpandedSet], budget: Budget) -> Judged | None:
    """The accepted and rejected images of an arm's first run; None where it did not judge any."""
    run = arm.row.runs[0]
    path = Path(run.folder, PSEUDO_LABELS)
    if not path.is_file() or run.predictions is None:
        return None
    names = run.predictions.class_names
    rows = _pseudo_labels(path, len(names))
    if not rows:
        return None
    accepted = [row for row in rows if row["accepted"]]
    other = sum(row["pseudo_label"] != row["seed_label"] for row in accepted)
    summary = (
        f"Of {len(rows)} generated images, self-training (seed {run.facts.get('seed')}) accepts "
        f"{len(accepted)}, {other} of them under another label than that of their real image."
    )
    gallery = Gallery(["accepted", "rejected"])
    folder = set_folder(run)
    mine = [each for each in sets if folder and each.folder.resolve() == folder.resolve()]
    if not mine:
        gallery.notes.append("The images are not shown: their expanded set is not there any more.")
    present = sorted({row["seed_label"] for row in rows})
    room = budget.count // (2 * SELF_TRAINING_IMAGES)
    for label in spread(present, min(SELF_TRAINING_CLASSES, room)) if mine else ():
        chosen = [row for row in rows if row["seed_label"] == label]
        columns = [
            [
                _judged(row, mine[0], names, budget)
                for row in [r for r in chosen if r["accepted"] is verdict][:SELF_TRAINING_IMAGES]
            ]
            for verdict in (True, False)
        ]
        gallery.rows.append((names[label], columns))
    if 0 < len(gallery.rows) < len(present):
        gallery.notes.append(f"{len(gallery.rows)} of {len(present)} classes are shown.")
    return Judged(arm.title, summary, gallery, _shares(rows, names))


def _pseudo_labels(path: Path, num_classes: int) -> list[dict[str, Any]]:
    """The rows of a file of pseudo-labels; none where it holds something else."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            labels = (row["seed_label"], row["pseudo_label"])
            known = all(type(label) is int and 0 <= label < num_classes for label in labels)
            if not known or not isinstance(row["file_name"], str):
                return []
            row["accepted"], row["confidence"] = bool(row["accepted"]), float(row["confidence"])
    except (OSError, *JSON_ERRORS, KeyError, TypeError):
        return []
    return rows


def _judged(
    row: Mapping[str, Any], made: ExpandedSet, names: Sequence[str], budget: Budget
) -> Thumbnail:
    """A generated image over what it is taken for."""
    pair = made.images.get(row["file_name"])
    record = _record(made, made.rows[pair]) if pair else None
    taken_for = names[row["pseudo_label"]]
    verdict = "accepted" if row["accepted"] else "rejected"
    alt = f"variant of an image of {names[row['seed_label']]}, {verdict} as {taken_for}"
    same = row["pseudo_label"] == row["seed_label"]
    caption = f"{100 * row['confidence']:.0f} %" + ("" if same else f" \u2192 {taken_for}")
    return budget.thumbnail(record, alt, caption)


def _shares(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[tuple[str, int, int, int]]:
    counts: dict[int, list[int]] = {}
    for row in rows:
        count = counts.setdefault(row["seed_label"], [0, 0, 0])
        count[0] += 1
        count[1] += row["accepted"]
        count[2] += row["accepted"] and row["pseudo_label"] != row["seed_label"]
    return [(names[label], *count) for label, count in sorted(counts.items())]
