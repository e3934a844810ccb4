"""Sets of images that another tool made: a folder for each class, or a file that tells labels.

<set>/<class>/*.png                    or <set>/train/<class>/*.png
<set>/metadata.jsonl or metadata.csv   with file_name and label, perhaps source
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from expansion.common.errors import InputError, brief, require, shown
from expansion.common.texts import NameIndex
from expansion.data.layouts.metadata_files import labels_file
from expansion.data.naming import ordered_folders
from expansion.data.readers.class_folders import images_of_class
from expansion.data.readers.list_files import read_list
from expansion.data.readers.rows import is_inside, row_path
from expansion.data.readers.split_folders import split_of
from expansion.images.file_trees import folders_in
from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

UNKNOWN = ""  # `source` of a generated image whose real image is not known


def read_other_set(
    folder: Path, classes: Mapping[str, int], sources: Mapping[str, ImageRecord]
) -> list[ImageRecord]:
    """The images of a set that this project did not make, as records of generated images.

    A metadata file with labels decides, else the names of folders. A class is named as in the
    dataset, or as the folder that expand.py gives it; a number is no label, unless a class is
    called so.

    Args:
        folder: Folder of the set.
        classes: Name of a class -> its label, in the dataset.
        sources: The dataset's real images by file_name, which a column `source` may name.

    Returns:
        Records sorted by file name; `source` is empty where the real image is not known.

    Raises:
        InputError: There are no images, a file is missing or outside the folder, or a class is not
            one of the dataset.
    """
    named = {name: name for name in classes}
    named = {folder: name for name, folder in ordered_folders(list(classes)).items()} | named
    index = NameIndex(named)
    records: dict[str, ImageRecord] = {}
    unknown: dict[str, str] = {}
    for name, class_name, source in images_of_others(folder):
        source = source if source in sources else UNKNOWN
        meant = index.find(class_name)
        if meant is None:
            unknown.setdefault(class_name, name)
            continue
        known = named[meant]
        record = ImageRecord(folder / name, name, classes[known], known, source)
        same = records.setdefault(name, record)
        require(
            same.label == record.label,
            f"{folder}: {name} is listed as {same.class_name!r} and as {known!r}",
        )
    require(
        not unknown,
        f"{folder}: {shown(map(repr, unknown), 3)} (of {shown(unknown.values(), 1)}) is no class "
        f"of the dataset, which has {shown(map(repr, classes), 5)}; rename it, or leave it out",
    )
    require(
        bool(records),
        f"{folder} holds no expanded set and no images; make one with expand.py, or give a folder "
        "with a folder of images for each class",
    )
    _tell(folder, list(records.values()), classes, sources)
    return [records[name] for name in sorted(records)]


def _tell(
    folder: Path,
    records: Sequence[ImageRecord],
    classes: Mapping[str, int],
    sources: Mapping[str, ImageRecord],
) -> None:
    """Log how many images there are, and how many have another label than their real image."""
    others = [r for r in records if r.source and r.label != sources[r.source].label]
    if others:
        logger.warning(
            f"{folder}: {len(others)} images have another label than their real image, such as "
            f"{others[0].file_name}: {others[0].class_name!r}, "
            f"{sources[others[0].source].class_name!r}"
        )
    logger.info(
        f"{folder}: {len(records)} images that were not made by expand.py, of "
        f"{len({record.label for record in records})} of {len(classes)} classes"
    )


def images_of_others(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The images of a set that this project did not make.

    Yields:
        Path below the folder, class as the set calls it, and the real image if the set tells one,
        else an empty text.

    Raises:
        InputError: A file is missing or outside the folder, or a class folder is empty.
    """
    file = labels_file(folder)
    return _listed(folder, file) if file else _in_folders(folder)


def _in_folders(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file name, class, source) of the images in class folders."""
    inner = folders_in(folder)
    splits = {split_of(path.name) for path in inner}
    require(
        "train" not in splits or len(inner) == 1 or None in splits,
        f"{folder} is divided into {shown(path.name for path in inner)}; give the folder for "
        "training alone",
    )
    if splits == {"train"}:
        inner = folders_in(inner[0])
    for place in inner:
        for path in images_of_class(place):
            yield path.relative_to(folder).as_posix(), place.name, UNKNOWN


def _listed(folder: Path, file: Path) -> Iterator[tuple[str, str, str]]:
    """(file name, class, source) of the images that a metadata file lists."""
    for place, row in read_list(folder, file.name):
        values = row if isinstance(row, dict) else {}
        name = values.get("file_name")
        label = values.get("label")
        if not isinstance(name, str) or not name.strip() or not isinstance(label, str | int):
            raise InputError(f"{place}: expected file_name and label, got {brief(row)}")
        name = row_path(name)
        require(is_inside(name), f"{place}: {name!r} is outside the folder")
        require((folder / name).is_file(), f"{place}: the image {name} is not there")
        source = values.get("source")
        yield name, str(label), source if isinstance(source, str) else UNKNOWN
