"""Images of the page: variants beside their real image, and how self-training judged them.

Every image is made small and put into the page itself; together they stay within a budget of bytes.
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
from expansion.store.other_sets import UNKNOWN

SIDE = 112  # longer side of an image in the page, pixels; shown at half of it or more
SMALL = 64  # images with sides up to this are kept as they are, pixels
USUAL_BYTES = 5_000  # bytes that an image usually takes in the page
BUDGET = 3_000_000  # bytes that all images of a page may take
VARIANTS = 3  # largest number of variants for each real image and method
FEW_CLASSES = 6  # for up to so many classes, two real images of each are shown
PAGE_IMAGES = 12  # images that fit side by side on a wide screen
MOST_BESIDE = 3  # largest number of tables of images side by side
SELF_TRAINING_CLASSES = 10  # largest number of classes shown of self-training
SELF_TRAINING_IMAGES = 5  # accepted images of a class, and as many rejected ones
PSEUDO_LABELS = "pseudo_labels.jsonl"


@dataclass(frozen=True)
class Thumbnail:
    """An image inside the page.

    Attributes:
        data: The image as a data URI; empty if there is none to show.
        alt: Text for those who do not see the image.
        caption: Text below it.
        small: Whether it should be enlarged without smoothing.
    """

    data: str
    alt: str
    caption: str = ""
    small: bool = False


@dataclass(eq=False)
class Gallery:
    """A table of images.

    Attributes:
        headings: Headings of the columns.
        rows: For each row its class, and for each column a list of thumbnails.
        notes: Sentences on what is left out and what to look for.
    """

    headings: list[str]
    rows: list[tuple[str, list[list[Thumbnail]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[list[tuple[str, list[list[Thumbnail]]]]]:
        """The rows divided among as many tables as fit side by side, of about equal height."""
        widest = max((sum(map(len, columns)) for _, columns in self.rows), default=1)
        number = max(1, min(MOST_BESIDE, PAGE_IMAGES // (widest + 1)))
        height = -(-len(self.rows) // number) or 1
        return [self.rows[i : i + height] for i in range(0, len(self.rows), height)]


@dataclass
class Budget:
    """The number of bytes that are left for images."""

    num_bytes: float = BUDGET

    @property
    def count(self) -> int:
        """The number of images that usually fit."""
        return max(0, int(self.num_bytes / USUAL_BYTES))

    def thumbnail(self, record: ImageRecord | None, alt: str, caption: str = "") -> Thumbnail:
        """Make an image small; an empty thumbnail if it is missing or there is no room.

        Args:
            record: The image; None if it is missing.
            alt: Text for those who do not see the image.
            caption: Text below it.
        """
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
    """A gallery with a row for each real image and the first variants of it in each set.

    Args:
        sets: Expanded sets of one dataset.
        budget: Bytes for the images; it is reduced by those that are used.
    """
    real, problem = _real_images(sets)
    gallery = Gallery([*(["real"] if real else []), *(each.name for each in sets)])
    if problem:
        gallery.notes.append(f"Real images are not shown: {problem}.")
    # As many rows for a class, and variants in a row, as the budget allows for all classes.
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
    # The rows: the real image first, if it is there, then the variants of each set.
    for class_name in shown:
        for source in classes[class_name][:num_rows]:
            shot = real.get(source)
            columns = [[budget.thumbnail(shot, f"real image of {class_name}")]] if real else []
            for each in sets:
                made = (each.variant(source, class_name, k) for k in range(num_variants))
                alt = f"variant by {each.name} of an image of {class_name}"
                columns.append([budget.thumbnail(record_of(each, row), alt) for row in made if row])
            gallery.rows.append((class_name, columns))
    if len(sets) > 1:
        gallery.notes.append(_noise(sets))
    return gallery


def record_of(made: ExpandedSet, row: Mapping[str, Any]) -> ImageRecord | None:
    """The image of a manifest row; None if the row names a place outside the set."""
    try:
        return made.record(row)
    except InputError:
        return None


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Choose at most `count` of the items, evenly spread over the list."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _real_images(sets: Sequence[ExpandedSet]) -> tuple[dict[str, ImageRecord], str]:
    """The real images of the first set that finds its own; else why the first one does not."""
    problems = []
    for each in sets:
        try:
            return each.real_images(), ""
        except (InputError, OSError) as error:
            problems.append(str(error))
    return {}, problems[0]


def _sources_by_class(sets: Sequence[ExpandedSet]) -> dict[str, list[str]]:
    """Class -> names of its real images, in label order; those that most sets share come first."""
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
    for sources in classes.values():
        if len(sources) > 1:
            sources.discard(UNKNOWN)  # images by other tools stand beside any real one
    names = sorted(classes, key=lambda name: (labels[name], name))
    return {n: sorted(classes[n], key=lambda source: (-counts[source], source)) for n in names}


def _noise(sets: Sequence[ExpandedSet]) -> str:
    """A sentence on whether variants side by side began from the same noise."""
    pairs = set.intersection(*(set(each.rows) for each in sets))
    seeds = [{each.rows[pair].get("seed") for each in sets} for pair in pairs]
    if seeds and all(len(each) == 1 for each in seeds):
        return "Variants in one row and place began from the same noise, whatever the method."
    return "The sets were made with different seeds, or of different images: noise is not the same."


@dataclass(eq=False)
class Judged:
    """How self-training judged the generated images in a run.

    Attributes:
        title: What the page calls the arm.
        summary: A sentence with the numbers.
        gallery: A row for each label of the real images; columns for accepted and rejected ones.
        shares: For each class its name and numbers of images: all, accepted, accepted under another
            label.
    """

    title: str
    summary: str
    gallery: Gallery
    shares: list[tuple[str, int, int, int]]


def judged_by_self_training(arm: Arm, sets: Sequence[ExpandedSet], budget: Budget) -> Judged | None:
    """How self-training judged the generated images in an arm's first run; None if it did not.

    Args:
        arm: Any arm.
        sets: Expanded sets, among which that of the arm may be.
        budget: Bytes for the images; it is reduced by those that are used.
    """
    run = arm.row.runs[0]
    path = Path(run.folder, PSEUDO_LABELS)
    if not path.is_file() or run.predictions is None:
        return None
    names = run.predictions.class_names
    rows = _pseudo_labels(path, len(names))
    if not rows:
        return None
    # The numbers in words.
    accepted = [row for row in rows if row["accepted"]]
    other = sum(row["pseudo_label"] != row["seed_label"] for row in accepted)
    summary = (
        f"Of {len(rows)} generated images, self-training (seed {run.facts.get('seed')}) accepts "
        f"{len(accepted)}, {other} of them under another label than that of their real image."
    )
    # Some images of some classes, if the set is still there.
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
    """The rows of a file of pseudo-labels; an empty list if it holds something else."""
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
    """A generated image, with the class that it is taken for below it."""
    pair = made.images.get(row["file_name"])
    record = record_of(made, made.rows[pair]) if pair else None
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
    return [(names[label], a, b, c) for label, (a, b, c) in sorted(counts.items())]
