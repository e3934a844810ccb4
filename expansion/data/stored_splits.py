"""Seeded splits that are kept as list files beside the images, and followed from then on."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expansion.common.errors import require, shown
from expansion.common.files import write_atomic
from expansion.common.texts import NameIndex, read_json
from expansion.data.splits import SplitOptions, split_by_class
from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

STORED_SPLIT = re.compile(r"split-.+-(test-[\d.e-]+|\d+-per-class)-seed\d+\.json")
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def stored_split(
    records: Sequence[ImageRecord], options: SplitOptions, root: Path, name: str
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Divide images into (training, test) as a list file in the dataset folder says.

    Without such a file `split_by_class` divides them, and the file is written. If the folder cannot
    be written, later calls compute the same split again.

    Args:
        records: All images.
        options: Which split; if they ask for none, the only list file in the folder counts.
        root: The dataset folder.
        name: Name of the dataset, in the name of the file.

    Raises:
        InputError: The stored list does not fit the images.
    """
    if options.wanted:
        path = root / f"split-{name}-{options.title}-seed{options.split_seed}.json"
    else:
        path = find_stored_split(root)
    if path.is_file():
        lists = read_json(path, dict)
        return _follow(path, lists, "train", records), _follow(path, lists, "test", records)
    train, test = split_by_class(records, options)
    lists = {"train": [r.file_name for r in train], "test": [r.file_name for r in test]}
    try:
        write_atomic(path, json.dumps(lists, indent=0) + "\n")
        logger.info("%s: %d images for training, %d for testing", path, len(train), len(test))
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
    return train, test


def find_stored_split(root: Path) -> Path | None:
    """The list file that an earlier command left in a dataset folder; None if there is none.

    Raises:
        InputError: There are several.
    """
    files = sorted(path for path in root.glob("split-*.json") if STORED_SPLIT.fullmatch(path.name))
    require(
        len(files) < 2,
        f"{root} holds the splits {shown([path.name for path in files])}; remove all but one, or "
        "give the --test_fraction of the one that counts",
    )
    return files[0] if files else None


def listed_names(path: Path, content: dict[str, Any], key: str) -> list[str]:
    """The file names under a key of a list file.

    Args:
        path: The file, for the error.
        content: What it holds.
        key: "train", "test" or "files".

    Raises:
        InputError: There is no list of file names under this key.
    """
    names = content.get(key)
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(is_list, f"{path}: expected a list of file names under '{key}'")
    return names


def _follow(
    path: Path, lists: dict[str, Any], split: str, records: Sequence[ImageRecord]
) -> list[ImageRecord]:
    """The records of a split as a list file says; its two lists must name exactly all records."""
    index = NameIndex(record.file_name for record in records)
    names, others = (
        {name: index.find(name) for name in listed_names(path, lists, key)}
        for key in (split, _other(split))
    )
    absent = sorted(name for name, there in names.items() if there is None)
    require(
        not absent,
        f"{path} names {len(absent)} images that are not there: {shown(absent)}; "
        "bring them back, or remove the file to split anew",
    )
    wanted, unwanted = set(names.values()), set(others.values())
    new = sorted({record.file_name for record in records} - wanted - unwanted)
    require(
        not new,
        f"{path} does not name {len(new)} images: {shown(new)}; "
        "remove them, or remove the file to split anew",
    )
    both = sorted(wanted & unwanted)
    require(not both, f"{path} has {shown(both)} in both splits; remove the file to split anew")
    return [record for record in records if record.file_name in wanted]


def _other(split: str) -> str:
    return "test" if split == "train" else "train"
