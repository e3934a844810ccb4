"""Finds the folders of a dataset's splits by the words that people use for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expansion.common.errors import InputError
from expansion.images.file_trees import folders_in, holds_images, walk

SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trainset"),
    "test": ("test", "testing", "testset"),
    "val": ("val", "valid", "validation", "valset", "eval", "evaluation", "dev"),
    "unlabeled": ("unlabeled", "unlabelled"),
    "prior": ("prior",),
}
# Words that may be added to the name of a split: Training_Set, test images, validation-data.
FILLERS = frozenset(("set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder"))
TESTING = ("test", "val")


@dataclass(frozen=True)
class SplitFolders:
    """The folders of the splits of a dataset.

    Attributes:
        found: "train", "test", "unlabeled", "prior" -> their folders, as far as they exist.
        lone: Name of a folder that is called like a split but is a class.
        untested: Why a folder that is called like the test split cannot be it.
        remarks: Lines on choices between several folders.
    """

    found: Mapping[str, Path]
    lone: str | None = None
    untested: str | None = None
    remarks: tuple[str, ...] = ()


def split_of(name: str) -> str | None:
    """The split that a word or the name of a folder means, a key of SPLIT_WORDS; else None."""
    parts = [p for p in re.split(r"[\W_]+", name.casefold()) if p and p not in FILLERS]
    if len(parts) != 1:
        return None
    return next((split for split, words in SPLIT_WORDS.items() if parts[0] in words), None)


def hints_at_split(name: str) -> tuple[str | None, str]:
    """The split that a part of a name means, and the rest of the name: `seg_train`, `val2017`.

    Classes may have such names too; only several folders with equal rests are likely to be splits.
    """
    for part in re.findall(r"[^\W\d_]+", name.casefold()):
        split = split_of(part)
        if split is not None:
            return split, re.sub(r"\d+", "", name.casefold().replace(part, "", 1))
    return None, name


def find_splits(
    root: Path, train_folder: str | None = None, test_folder: str | None = None
) -> SplitFolders:
    """Find the folders of the splits in a dataset's folder.

    Args:
        root: The dataset's folder.
        train_folder: Name of the training folder, if the settings give it.
        test_folder: Name of the test folder, if the settings give it.

    Raises:
        InputError: Two folders mean the same split, and both hold images.
    """
    # One folder for each split.
    folders = folders_by_split(root)
    for split, named in (("train", train_folder), ("test", test_folder)):
        if named is not None:
            folders[split] = [root / named] if (root / named).is_dir() else []
    if test_folder is not None:
        folders.pop("val", None)
    chosen = {split: _one(root, split, paths) for split, paths in folders.items() if paths}
    lone = _class_of_a_splits_name(root, chosen)
    if lone is not None:
        remark = f"folder {lone.name}/ is a class here: its images lie beside those of the others"
        return SplitFolders({}, lone.name, remarks=(remark,))
    # The test split: "test" if it has classes, else "val".
    untested, remarks = None, []
    test, val = chosen.get("test"), chosen.pop("val", None)
    if test is not None and test_folder is None and not has_classes(test):
        untested = f"{test} has no class folders" + _direct(test)
        del chosen["test"]
        test = None
    if test is None and val is not None:
        chosen["test"] = val
        why = f", as {untested}" if untested else ""
        remarks.append(f"{val.name}/ is used as the test split{why}")
    if "train" not in chosen:
        chosen.pop("prior", None)  # a class like any other
    return SplitFolders(chosen, None, untested, tuple(remarks))


def folders_by_split(root: Path) -> dict[str, list[Path]]:
    """Split -> the folders in `root` whose names mean it."""
    folders: dict[str, list[Path]] = {}
    for folder in folders_in(root):
        split = split_of(folder.name)
        if split is not None:
            folders.setdefault(split, []).append(folder)
    return folders


def has_classes(folder: Path) -> bool:
    """Whether the folder holds folders with images."""
    return any(walk(child).images for child in folders_in(folder))


def refuse_a_part(root: Path) -> None:
    """Raise InputError if `root` is the test folder of a dataset, which is not for training."""
    if split_of(root.name) not in TESTING or folders_by_split(root).get("train"):
        return
    classes = {folder.name for folder in folders_in(root)}
    for train in folders_by_split(root.parent).get("train", []):
        alike = classes & {folder.name for folder in folders_in(train)}
        if alike or (holds_images(root) and holds_images(train)):
            raise InputError(
                f"{root} is the test split of {root.parent}, beside {train.name}/; "
                f"give {root.parent}"
            )


def _one(root: Path, split: str, paths: list[Path]) -> Path:
    """The folder of a split; of several folders the one that holds images, if only one does."""
    full = [path for path in paths if len(paths) == 1 or walk(path).images]
    if len(full) > 1:
        names = " and ".join(f"{path.name}/" for path in full)
        raise InputError(
            f"{root}: {names} mean the same split; merge them, or move all but one out of {root}"
        )
    return (full or paths)[0]


def _class_of_a_splits_name(root: Path, chosen: Mapping[str, Path]) -> Path | None:
    """A folder that is called like a split but is a class like its neighbours; None without one.

    Raises:
        InputError: It may be a class, or hold images without a class.
    """
    named = [chosen[split] for split in ("train", *TESTING) if split in chosen]
    if len(named) != 1 or not holds_images(named[0]) or has_classes(named[0]):
        return None
    others = [p for p in folders_in(root) if split_of(p.name) is None and holds_images(p)]
    if "train" in chosen and len(others) > 1:  # between, say, airplane and truck
        return named[0]
    if not others:
        return None
    name = named[0].name
    raise InputError(
        f"{root}: is {name}/ a class like {others[0].name}/, or images without class? If a class, "
        f"rename it; if not, move it out of {root}"
    )


def _direct(folder: Path) -> str:
    return ", its images lie in it directly" if holds_images(folder) else ""
