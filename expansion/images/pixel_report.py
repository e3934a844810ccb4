"""Findings about many decoded images: conversions, doubtful grey values, images of one colour."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from expansion.common.errors import shown
from expansion.images.pixels import SIXTEEN, UNDECLARED, Decoded, extrema
from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

FLAT_LEVELS = 16  # of 256; less between the lowest and the highest value is nearly one colour
DARK_TOP = 127  # of 255; a set of 16-bit images that never goes beyond uses 15 bits or fewer
REMEDY = (
    "say value_range: [{}, {}] in the dataset's file in configs/datasets/, or store them as 8 bits"
)


@dataclass(frozen=True)
class PixelFacts:
    """Facts about the pixels of an image, which are kept when the image is forgotten.

    Attributes:
        notes: One text for each conversion that reading it took.
        top: Largest value of the upper 8 bits of a 16-bit image; None for other images.
        flat: Whether the image is nearly of one colour.
        digest: SHA-256 of size and RGB pixels, hexadecimal.
    """

    notes: tuple[str, ...] = ()
    top: int | None = None
    flat: bool = False
    digest: str = ""


def facts_of(decoded: Decoded) -> PixelFacts:
    """The facts about a decoded image."""
    flat = all(high - low < FLAT_LEVELS for low, high in extrema(decoded.image))
    return PixelFacts(decoded.notes, decoded.top, flat, pixel_digest(decoded.image))


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels of an image, whatever file it came from."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def conversion_lines(facts: Iterable[PixelFacts]) -> list[str]:
    """A list of one line that counts the conversions; empty if there were none."""
    counts = Counter(note for one in facts for note in one.notes)
    listed = "; ".join(f"{note}: {count}" for note, count in counts.most_common())
    return [f"converted: {listed}"] if counts else []


def pixel_findings(
    images: Sequence[tuple[ImageRecord, PixelFacts]],
) -> tuple[list[str], list[str]]:
    """Texts about doubtful images of a dataset, as problems and as mere notes."""
    problems, notes, ask = [], [], REMEDY.format("BLACK", "WHITE")
    # Files without a declared range, whose values may be scaled differently.
    ways = Counter(
        note.removeprefix(UNDECLARED)
        for _, facts in images
        for note in facts.notes
        if note.startswith(UNDECLARED)
    )
    if len(ways) > 1:
        listed = "; ".join(f"{count} images {way}" for way, count in ways.most_common())
        problems.append(
            f"grey values without a declared range were taken differently: {listed}; {ask}"
        )
    elif ways and not next(iter(ways))[0].isdigit() and len(images) > 1:
        notes.append(
            f"{ways.total()} images were each {next(iter(ways))}, so that equal values of two may "
            f"look different; {ask}"
        )
    # Images of 16 bits that use only the lower values.
    tops = [facts.top for _, facts in images if facts.top is not None]
    if tops and max(tops) <= DARK_TOP:
        highest = 256 * (max(tops) + 1) - 1
        problems.append(
            f"{len(tops)} {SIXTEEN} images come out dark or black: none has a value above "
            f"{highest} of 65535; {REMEDY.format(0, highest)}"
        )
    # Images of nearly one colour: a problem where they are the rule.
    flat = [record for record, facts in images if facts.flat]
    if flat:
        listed = shown(record.file_name for record in flat)
        plural = "image is" if len(flat) == 1 else "images are"
        line = f"{len(flat)} {plural} nearly one colour: {listed}"
        emptied = _mostly_flat(images)
        if emptied:
            problems.append(f"{line}; most of {emptied}: blank files, or values of another range")
        else:
            notes.append(line)
    return problems, notes


def warn_of_pixels(images: Sequence[tuple[ImageRecord, PixelFacts]]) -> None:
    """Log the problems of `pixel_findings`, for commands that go on nevertheless."""
    for problem in pixel_findings(images)[0]:
        logger.warning("warning: %s", problem)


def _mostly_flat(images: Sequence[tuple[ImageRecord, PixelFacts]]) -> str:
    """Where more than half of the images are nearly of one colour: "all", "class ..." or ""."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for record, facts in images:
        groups[record.class_name].append(facts.flat)
    flat = sum(map(sum, groups.values()))
    if 2 * flat > len(images):
        return "all"
    classes = [name for name, members in groups.items() if 2 * sum(members) > len(members)]
    return f"class {shown(classes)}" if classes else ""
