"""A report on a dataset and its faults: counts, sizes, unreadable files, duplicates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from expansion.common.errors import InputError, one_line, shown
from expansion.common.tables import aligned
from expansion.data.copies import SPLITS, find_copies
from expansion.data.datasets import classes_without_images
from expansion.data.naming import look_alikes, ordered_folders
from expansion.images.generated_images import generated, message
from expansion.images.pixel_report import PixelFacts, conversion_lines, facts_of, pixel_findings
from expansion.images.records import ImageRecord

SMALL_SIDE = 16  # pixels; a smaller image hardly shows its class
FEW_CLASSES = 2


@dataclass(frozen=True)
class Look:
    """What is kept of an image after it was read.

    Attributes:
        size: (width, height) of the image as it is used, pixels.
        mode: Pillow's mode of the file.
        pixels: Hash of the pixels, conversions, and whether the image is nearly of one colour.
        problem: Why the image cannot be read; if this is set, the rest means nothing.
    """

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    pixels: PixelFacts = PixelFacts()
    problem: str = ""


def check_splits(
    title: str,
    class_names: Sequence[str],
    prompt_names: Sequence[str],
    records_of: Callable[[str], list[ImageRecord]],
    remarks: Sequence[str] = (),
) -> tuple[str, int]:
    """Read every training and test image of a dataset and report on them.

    Args:
        title: First line of the report.
        class_names: Names of the classes, in label order.
        prompt_names: Names of the classes in prompts, in label order.
        records_of: Gives the images of a split; raises InputError if something is missing.
        remarks: Lines on choices that were made and files that are not used.

    Returns:
        The report, and the number of problems in it.
    """
    # The lists of images; a split that cannot be listed is a problem like others.
    records: dict[str, list[ImageRecord]] = {}
    problems: list[str] = []
    for split in SPLITS:
        try:
            records[split] = records_of(split)
        except InputError as error:
            records[split] = []
            problems = list(dict.fromkeys([*problems, str(error)]))
    # Read all images, and collect what is wrong with them.
    everything = [record for split in SPLITS for record in records[split]]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looks = dict(
            zip((r.file_name for r in everything), pool.map(_look, everything), strict=True)
        )
    problems += [look.problem for look in looks.values() if look.problem]
    problems += _class_problems(class_names, records["train"])
    pixels = [(r, looks[r.file_name].pixels) for r in everything if not looks[r.file_name].problem]
    odd_pixels, pixel_notes = pixel_findings(pixels)
    made = generated(everything)
    problems += [message(made)] if made else []
    readable = {n: look.pixels.digest for n, look in looks.items() if not look.problem}
    across, notes = find_copies(records, readable)
    untested = classes_without_images(class_names, records["test"])
    if records["test"] and untested:
        notes.append(f"no test image of {shown(untested)}: nothing will be known of them")
    problems += odd_pixels
    # The report: figures first, then notes, then problems.
    lines = [
        title,
        *_count_table(class_names, prompt_names, records),
        *_image_lines(looks),
        *conversion_lines(facts for _, facts in pixels),
        *map(one_line, remarks),
        *(f"note: {note}" for note in notes + pixel_notes + _small(looks)),
        *(f"problem: {problem}" for problem in problems + across),
    ]
    num_problems = len(problems) + len(across)
    plural = "" if num_problems == 1 else "s"
    return "\n".join([*lines, f"{num_problems} problem{plural}", ""]), num_problems


def _look(record: ImageRecord) -> Look:
    try:
        decoded = record.decoded()
    except InputError as error:
        return Look(problem=str(error))
    image = decoded.image
    return Look(image.size, decoded.mode, facts_of(decoded))


def _class_problems(class_names: Sequence[str], train: Sequence[ImageRecord]) -> list[str]:
    problems = []
    if len(class_names) < FEW_CLASSES:
        problems.append(f"only the class {shown(class_names)}; a classifier needs two or more")
    problems += [
        f"the classes {shown(map(repr, names))} look alike; write one name if they are one class"
        for names in look_alikes(class_names)
    ]
    absent = classes_without_images(class_names, train)
    if train and absent:
        problems.append(f"no training image of {shown(absent)}")
    return problems


def _count_table(
    class_names: Sequence[str],
    prompt_names: Sequence[str],
    records: dict[str, list[ImageRecord]],
) -> list[str]:
    counts = {split: Counter(r.label for r in records[split]) for split in SPLITS}
    folders = ordered_folders(class_names)
    rows: list[tuple[str, ...]] = [("label", *SPLITS, "class", "in prompts", "folder")]
    rows += [
        (str(label), *(str(counts[s][label]) for s in SPLITS), name, prompt, folders[name])
        for label, (name, prompt) in enumerate(zip(class_names, prompt_names, strict=True))
    ]
    totals = [str(len(records[split])) for split in SPLITS]
    rows.append(("all", *totals, f"{len(class_names)} classes", "", ""))
    return aligned(rows, left=range(len(rows[0]))).split("\n")


def _image_lines(looks: dict[str, Look]) -> list[str]:
    readable = [look for look in looks.values() if not look.problem]
    if not readable:
        return []
    widths, heights = zip(*(look.size for look in readable), strict=True)
    sizes = Counter(look.size for look in readable)
    (usual, count), *_ = sizes.most_common(1)
    modes = Counter(look.mode for look in readable)
    ranges = f"width {min(widths)} to {max(widths)}, height {min(heights)} to {max(heights)}"
    return [
        f"sizes: {len(sizes)}, {ranges}; most often {usual[0]}x{usual[1]} ({count})",
        "modes: " + ", ".join(f"{mode} {n}" for mode, n in modes.most_common()),
        f"unreadable: {len(looks) - len(readable)} of {len(looks)}",
    ]


def _small(looks: dict[str, Look]) -> list[str]:
    small = [n for n, look in looks.items() if not look.problem and min(look.size) < SMALL_SIDE]
    if not small:
        return []
    return [f"{len(small)} images have a side below {SMALL_SIDE} pixels: {shown(small)}"]
