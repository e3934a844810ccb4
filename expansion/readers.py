"""Readers of a dataset's layout on disk: folders of class folders, and what the others share.

A reader is made from its layout (the YAML fields of its kind), the dataset folder and the dataset's
name. It has `class_names` in label order, `spoken_names` (class -> name in prompts, where its
files tell) and `records(split)`; `splits_by_seed` says that it made the test split itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from expansion.config import option, require
from expansion.errors import InputError
from expansion.records import IMAGE_SUFFIXES, ImageRecord, image_files, shown
from expansion.splits import SplitOptions, read_json, stored_split

SPLIT_FOLDERS = {
    "train": ("train",),
    "test": ("test", "val", "valid"),
    "prior": ("prior",),
    "unlabeled": ("unlabeled",),
}


class Reader(Protocol):
    """What every kind of reader offers."""

    class_names: tuple[str, ...]
    spoken_names: Mapping[str, str]
    splits_by_seed: bool

    def records(self, split: str) -> list[ImageRecord]:
        """Images of a split, sorted by class and file name."""


@dataclass(frozen=True, kw_only=True)
class FolderLayout(SplitOptions):
    """YAML fields of `reader: folder`."""

    train_folder: str | None = option(None, "folder of the training classes; default: train")
    test_folder: str | None = option(
        None, "folder of the test classes; default: test, val or valid"
    )
    single_folder: str = option(
        ".", "folder of class folders that is split by seed where there is no training folder"
    )
    drop_classes: tuple[str, ...] = option((), "class folders that are left out")
    class_order: str = option(
        "name", "order of the labels: by folder name or by number", choices=("name", "number")
    )
    class_names_file: str | None = option(
        None, "JSON object: class folder -> name in prompts; class_names wins over it"
    )


class FolderReader:
    """Class folders below `train` and `test`, or below one folder that is split by seed.

    Args:
        folders: Class -> its folder, in label order, where the folders cannot bear the names.
    """

    def __init__(
        self,
        layout: FolderLayout,
        root: Path,
        name: str,
        folders: Mapping[str, str] | None = None,
    ):
        require_root(root)
        self.layout, self.root, self.name = layout, root, name
        first, second = self._find("train"), self._find("test")
        # A training folder without a test folder is a hole, unless a share of it may be tested.
        may_split = first is None or layout.test_fraction is not None
        self.splits_by_seed = layout.wanted and second is None and may_split
        if self.splits_by_seed:
            first = first or root / layout.single_folder
        if first is None or not first.is_dir():
            raise InputError(self._lack("train"))
        if folders is None:
            folders = {folder: folder for folder in self._class_folders(first)}
            self._check_depth(first, list(folders))
        self.train_dir, self.folders = first, folders
        self.class_names = tuple(folders)

    @cached_property
    def spoken_names(self) -> Mapping[str, str]:
        if self.layout.class_names_file is None:
            return {}
        return read_json(self.root / self.layout.class_names_file, dict)

    def records(self, split: str) -> list[ImageRecord]:
        if self.splits_by_seed and split in ("train", "test"):
            return self._halves[split]
        folder = self.train_dir if split == "train" else self._find(split)
        if folder is None:
            raise InputError(self._lack(split))
        if split == "unlabeled":
            names = [p.relative_to(self.root).as_posix() for p in image_files(folder)]
            return [ImageRecord(self.root / name, name, 0, "") for name in names]
        return self._records_below(folder)

    @cached_property
    def _halves(self) -> dict[str, list[ImageRecord]]:
        everything = self._records_below(self.train_dir)
        train, test = stored_split(everything, self.layout, self.root, self.name)
        return {"train": train, "test": test}

    def _find(self, split: str) -> Path | None:
        """The folder of a split, if it is there."""
        named = {"train": self.layout.train_folder, "test": self.layout.test_folder}.get(split)
        candidates = [named] if named else SPLIT_FOLDERS[split]
        return next((self.root / c for c in candidates if (self.root / c).is_dir()), None)

    def _records_below(self, split_dir: Path) -> list[ImageRecord]:
        labels = {folder: label for label, folder in enumerate(self.folders.values())}
        present = self._class_folders(split_dir)
        unknown = [name for name in present if name not in labels]
        require(
            not unknown,
            f"{split_dir}: class {', '.join(map(repr, unknown))} is not in {self.train_dir}; "
            "add training images or remove the folder",
        )
        return [
            ImageRecord(path, path.relative_to(self.root).as_posix(), label, class_name)
            for label, (class_name, folder) in enumerate(self.folders.items())
            if folder in present
            for path in _images_of_class(split_dir / folder)
        ]

    def _class_folders(self, split_dir: Path) -> list[str]:
        dropped = self.layout.drop_classes
        names = [p.name for p in _folders(split_dir) if p.name not in dropped]
        if not names:
            hint = " (images lie in it directly)" if _holds_images(split_dir) else ""
            raise InputError(
                f"{split_dir} has no class folders{hint}; expected {split_dir}/<class>/*.jpg"
            )
        if self.layout.class_order == "number":
            odd = [name for name in names if not name.isdecimal() or len(name) > 20]
            require(not odd, f"{split_dir}: class_order is number, but {shown(odd)} is none")
            names.sort(key=int)
        return names

    def _check_depth(self, train_dir: Path, names: Sequence[str]) -> None:
        """Refuse a single class that is really the folder of the class folders."""
        inner = train_dir / names[0]
        remedy = f"move the content of {inner} up to {train_dir}"
        if train_dir.samefile(self.root):
            remedy = f"give {inner}"
        require(
            len(names) > 1 or _holds_images(inner) or not _holds_class_folders(inner),
            f"{train_dir} holds only the folder {names[0]}/, and the class folders lie in that, "
            f"one level deeper; {remedy}",
        )

    def _lack(self, split: str) -> str:
        """What is missing, and what looks like the right place."""
        named = {"train": self.layout.train_folder, "test": self.layout.test_folder}.get(split)
        folder = named or SPLIT_FOLDERS[split][0]
        if split == "test":
            advice = "; or give --test_fraction 0.3 to test on a part of the training images"
        else:
            advice = _other_level(self.root)
        return f"{self.root} has no folder {folder}/; expected {folder}/<class>/*.jpg in it{advice}"


def require_root(root: Path) -> None:
    """Raise InputError unless the dataset folder exists."""
    require(
        root.is_dir(), f"dataset folder {root} does not exist; INSTALL.md shows the expected layout"
    )


def _other_level(root: Path) -> str:
    """Advice for a folder without training folder: what its neighbours look like."""
    splits = ("train", "test", "val", "valid")
    for parent, steps in ((root.parent, "one level"), (root.parent.parent, "two levels")):
        below = root.relative_to(parent).parts
        if below and below[0] in splits and (parent / "train").is_dir():
            return f"; it lies {steps} too deep: give {parent}"
    if _holds_images(root):
        return f"; images lie in it directly: if they are one class, give {root.parent}"
    if any(_holds_images(child) for child in _folders(root) if child.name not in splits):
        return (
            "; its folders look like classes themselves: give --test_fraction 0.3 to split them "
            "by seed"
        )
    for child in _folders(root):
        if _holds_class_folders(child / "train" if (child / "train").is_dir() else child):
            return f"; it lies one level too high: give {child}" if child.name not in splits else ""
    return ""


def _folders(folder: Path) -> list[Path]:
    """Visible folders in `folder`, sorted by name."""
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda p: p.name
    )


def _holds_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() for p in folder.iterdir())


def _holds_class_folders(folder: Path) -> bool:
    return any(_holds_images(child) for child in _folders(folder))


def _images_of_class(folder: Path) -> Sequence[Path]:
    files = image_files(folder)
    require(bool(files), f"class folder {folder} holds no images; add images or remove the folder")
    return files
