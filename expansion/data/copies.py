"""Images of equal pixels in a dataset, whatever their files are called or how they are encoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from expansion.common.errors import shown
from expansion.images.records import ImageRecord

SPLITS = ("train", "test")
TITLES = {"train": "training images", "test": "test images"}


def find_copies(
    records: Mapping[str, Sequence[ImageRecord]], pixels: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Texts on copies, as problems and as mere notes.

    It is a problem if they are in both splits or have different labels.

    Args:
        records: Images of the splits "train" and "test".
        pixels: File name -> hash of the pixels; images that are not in it are left out.
    """
    places: dict[str, dict[str, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for split in SPLITS:
        for record in records[split]:
            if record.file_name in pixels:
                places[pixels[record.file_name]][split].append(record)
    problems, notes = [], []
    across = [p for p in places.values() if len(p) == len(SPLITS)]
    if across:
        listed = shown(f"{p['train'][0].file_name} = {p['test'][0].file_name}" for p in across)
        count = sum(len(p["test"]) for p in across)
        problems.append(
            f"{count} of {len(records['test'])} test images are training images too: {listed}; "
            "what is measured on them says nothing"
        )
    for split, title in TITLES.items():
        groups = [p[split] for p in places.values() if len(p.get(split, ())) > 1]
        torn = [group for group in groups if len({r.label for r in group}) > 1]
        if torn:
            problems.append(f"{len(torn)} {title} bear several labels: {_pairs(torn)}")
        if groups:
            notes.append(f"{len(groups)} {title} occur more than once: {_pairs(groups)}")
    return problems, notes


def _pairs(groups: Sequence[Sequence[ImageRecord]]) -> str:
    return shown(" = ".join(record.file_name for record in group[:2]) for group in groups)
