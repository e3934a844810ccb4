"""Which images are for training: few-shot subsets, held-out images, parts, seeded splits.

Every choice is a function of a seed and the file names, and never of the order of the images.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require, shown
from expansion.common.seeding import stable_seed
from expansion.images.content import pixels_of
from expansion.images.records import ImageRecord


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
    """Divide images into (training, validation); copies are treated as by `split_by_class`.

    Args:
        records: All images.
        fraction: Share of each class for validation, 0 to 1: at least one image, unless it is 0.
        seed: Decides which images are held out.

    Raises:
        InputError: A class would be left without training images, or has too few that are no
            copies.
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

    Each class is dealt out to the parts in an order by seed and file name. Copies, images of the
    same pixels, are in the same part, of whatever class they are.

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
    contents = pixels_of(records)
    part_of: dict[str, int] = {}  # content -> part
    dealt: Counter[int] = Counter()  # label -> images so far
    for record in sorted(records, key=lambda r: stable_seed("fold", seed, r.file_name)):
        content = contents[record.file_name]
        if content not in part_of:
            part_of[content] = (dealt[record.label] + record.label) % count
            dealt[record.label] += 1
    held = [r for r in records if part_of[contents[r.file_name]] == number - 1]
    kept = [r for r in records if part_of[contents[r.file_name]] != number - 1]
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

    Copies, images of the same pixels, are on the same side: for training if they are in several
    classes.

    Args:
        records: All images.
        options: The number for training or the share for testing, and the seed.

    Raises:
        InputError: A class has too few images, or too few that are no copies.
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
    return {
        record.file_name
        for members in _by_class(records, salt, seed)
        for record in members[: count(members)]
    }


def _parted(
    records: Sequence[ImageRecord],
    count: Callable[[Sequence[ImageRecord]], int],
    *,
    salt: str,
    seed: int,
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Divide records into (the rest, `count(members)` of each class), in their order.

    Copies, images of the same pixels, stay together, so that nothing is tested on what was learnt:
    in the rest if they are in several classes, or more than there is still room for.
    """
    contents = pixels_of(records)
    classes_of: dict[str, set[int]] = defaultdict(set)
    for record in records:
        classes_of[contents[record.file_name]].add(record.label)
    chosen: set[str] = set()
    for members in _by_class(records, salt, seed):
        groups: dict[str, list[str]] = defaultdict(list)  # content -> file names
        for record in members:
            groups[contents[record.file_name]].append(record.file_name)
        wanted, taken = count(members), 0
        for content, names in groups.items():
            if len(classes_of[content]) == 1 and taken + len(names) <= wanted:
                chosen.update(names)
                taken += len(names)
        require(
            taken > 0,
            f"class {members[0].class_name!r}: each of its images occurs several times "
            f"({shown([r.file_name for r in members])}), so none can be set apart of which no copy "
            "is left for training; remove the copies",
        )
    return (
        [r for r in records if r.file_name not in chosen],
        [r for r in records if r.file_name in chosen],
    )


def _by_class(records: Sequence[ImageRecord], salt: str, seed: int) -> list[list[ImageRecord]]:
    """The images of each class, in the order of their hashes."""
    by_class: dict[int, list[ImageRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: stable_seed(salt, seed, r.file_name)):
        by_class[record.label].append(record)
    return [by_class[label] for label in sorted(by_class)]
