"""Which images are for training: few-shot subsets, held-out images, seeded splits as file lists.

Every choice is a function of a seed and the file names, and never of the order of the images.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.common.config import option
from expansion.common.errors import require, shown
from expansion.common.files import write_atomic
from expansion.common.seeding import stable_seed
from expansion.common.texts import NameIndex, read_json
from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

STORED_SPLIT = re.compile(r"split-.+-(test-[\d.e-]+|\d+-per-class)-seed\d+\.json")
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How a dataset without a test split is divided, class by class."""

    train_per_class: int | None = option(
        None, "images of each class for training where there is no test split; the rest is tested"
    )
    test_fraction: float | None = option(
        None, "share of each class for testing where there is no test split; 0 to 1"
    )
    split_seed: int = option(0, "which images that split takes")

    def __post_init__(self):
        count, fraction = self.train_per_class, self.test_fraction
        require(
            count is None or fraction is None,
            f"train_per_class {count} and test_fraction {fraction}: give only one of them",
        )
        require(count is None or count > 0, f"train_per_class {count}: give a positive number")
        require(
            fraction is None or 0 < fraction < 1,
            f"test_fraction {fraction}: give a share between 0 and 1, such as 0.3",
        )

    @property
    def wanted(self) -> bool:
        """Whether the options ask for a split."""
        return self.train_per_class is not None or self.test_fraction is not None

    @property
    def title(self) -> str:
        """The setting as it appears in the name of the stored split."""
        if self.train_per_class is not None:
            return f"{self.train_per_class}-per-class"
        return f"test-{self.test_fraction:g}"


def few_shot(
    records: Sequence[ImageRecord], shots: int | None, subset_seed: int = 0
) -> list[ImageRecord]:
    """Keep `shots` images of each class, chosen by a hash of seed and file name.

    Fewer shots keep a subset of what more shots keep.

    Args:
        records: Training images.
        shots: Number of images per class; None keeps all.
        subset_seed: Decides which images are kept.

    Raises:
        InputError: A class has fewer images.
    """
    if shots is None:
        return list(records)
    require(shots > 0, f"--shots {shots}: give a positive number of images per class")

    def count(members: Sequence[ImageRecord]) -> int:
        require(
            len(members) >= shots,
            f"--shots {shots}: class {members[0].class_name!r} has only {len(members)} images",
        )
        return shots

    chosen = _choose(records, count, "shots", subset_seed)
    return sorted((r for r in records if r.file_name in chosen), key=lambda r: r.file_name)


def share_of_each_class(
    records: Sequence[ImageRecord], fraction: float, subset_seed: int
) -> list[ImageRecord]:
    """Keep a share of each class, rounded, but at least one image; chosen as by `few_shot`.

    A smaller share keeps a part of what a larger one keeps.

    Args:
        records: All images.
        fraction: The share, more than 0 and at most 1.
        subset_seed: Decides which images are kept.
    """
    if fraction == 1:
        return list(records)
    chosen = _choose(
        records, lambda members: max(1, round(fraction * len(members))), "share", subset_seed
    )
    return [record for record in records if record.file_name in chosen]


def hold_out(
    records: Sequence[ImageRecord], fraction: float, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Divide images into (training, validation).

    Args:
        records: All images.
        fraction: Share of each class for validation, 0 to 1: at least one image, unless it is 0.
        seed: Decides which images are held out.

    Raises:
        InputError: A class would be left without training images.
    """
    if fraction == 0:
        return list(records), []
    return _parted(
        records, _share(fraction, f"val_fraction {fraction}"), salt="hold out", seed=seed
    )


def fold_of(
    records: Sequence[ImageRecord], fold: str | None, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Divide images into (training, the part that is tested on) for cross-validation.

    Each class is dealt out to the parts in an order by seed and file name. Images of the same
    content, of whatever class, are in the same part.

    Args:
        records: All images.
        fold: "I/K": the part I, from 1, of K; None keeps all for training.
        seed: Decides which images are in which part.

    Raises:
        InputError: `fold` is written otherwise, or a class would have no image for training.
    """
    if fold is None:
        return list(records), []
    number, count = read_fold(fold)
    part_of: dict[str, int] = {}  # content -> part
    dealt: Counter[int] = Counter()  # label -> images so far
    for record in sorted(records, key=lambda r: stable_seed("fold", seed, r.file_name)):
        if record.content not in part_of:
            part_of[record.content] = (dealt[record.label] + record.label) % count
            dealt[record.label] += 1
    held = [record for record in records if part_of[record.content] == number - 1]
    kept = [record for record in records if part_of[record.content] != number - 1]
    bare = sorted({r.class_name for r in records} - {r.class_name for r in kept})
    require(not bare, f"--fold {fold}: no image of {shown(bare)} is left for training")
    require(bool(held), f"--fold {fold}: no image is in this part; give fewer parts")
    return kept, held


def read_fold(fold: str) -> tuple[int, int]:
    """The number of a part, from 1, and the number of parts.

    Raises:
        InputError: `fold` is not "I/K" with 1 <= I <= K and K of at least 2.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", fold)
    number, count = map(int, match.groups()) if match else (0, 0)
    require(
        1 <= number <= count and count > 1,
        f"--fold {fold}: write I/K, such as 1/5 for the first of five parts",
    )
    return number, count


def split_by_class(
    records: Sequence[ImageRecord], options: SplitOptions
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Divide images into (training, test), class by class, with at least one image on each side.

    Args:
        records: All images.
        options: The number for training or the share for testing, and the seed.

    Raises:
        InputError: A class has too few images.
    """
    kept = options.train_per_class
    if kept is None:
        count = _share(options.test_fraction, f"test_fraction {options.test_fraction}")
        return _parted(records, count, salt="split", seed=options.split_seed)

    def rest(members: Sequence[ImageRecord]) -> int:
        require(
            len(members) > kept,
            f"train_per_class {kept}: class {members[0].class_name!r} has only {len(members)} "
            "images, so none is left for testing; give fewer or drop the class",
        )
        return len(members) - kept

    return _parted(records, rest, salt="split", seed=options.split_seed)


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


def _share(fraction: float, title: str) -> Callable[[Sequence[ImageRecord]], int]:
    """A function that gives the number of images in `fraction` of a class: at least 1, not all."""

    def count(members: Sequence[ImageRecord]) -> int:
        number = max(1, round(fraction * len(members)))
        plural = "" if len(members) == 1 else "s"
        require(
            number < len(members),
            f"{title}: class {members[0].class_name!r} has only {len(members)} image{plural}, so "
            "none is left for training; add images or take the class away",
        )
        return number

    return count


def _choose(
    records: Sequence[ImageRecord],
    count: Callable[[Sequence[ImageRecord]], int],
    salt: str,
    seed: int,
) -> set[str]:
    """File names of the first `count(members)` of each class, in the order of their hashes."""
    by_class: dict[int, list[ImageRecord]] = {}
    for record in sorted(records, key=lambda r: stable_seed(salt, seed, r.file_name)):
        by_class.setdefault(record.label, []).append(record)
    members_by_label = (by_class[label] for label in sorted(by_class))
    return {r.file_name for members in members_by_label for r in members[: count(members)]}


def _parted(
    records: Sequence[ImageRecord],
    count: Callable[[Sequence[ImageRecord]], int],
    *,
    salt: str,
    seed: int,
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Divide records into (the rest, `count(members)` of each class), in their order."""
    chosen = _choose(records, count, salt, seed)
    return (
        [r for r in records if r.file_name not in chosen],
        [r for r in records if r.file_name in chosen],
    )


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
