"""What every reader of a dataset offers, and the reader of folders of class folders.

A reader is made from its layout (the YAML fields of its kind), the dataset's folder and its name;
`expansion.data.layouts.configs.READERS` lists the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from expansion.common.config import option
from expansion.common.errors import InputError, require, shown
from expansion.common.texts import read_json
from expansion.data.naming import look_alikes
from expansion.data.readers.class_folders import (
    check_class_folders,
    images_of_class,
    refuse_dangling,
)
from expansion.data.readers.split_folders import (
    TESTING,
    find_splits,
    folders_by_split,
    split_of,
)
from expansion.data.splits import SplitOptions
from expansion.data.stored_splits import find_stored_split, stored_split
from expansion.images.file_trees import folders_in, holds_images, image_files, walk
from expansion.images.records import ImageRecord


class Reader(Protocol):
    """What every kind of reader offers.

    Its constructor raises InputError for files that are missing or unclear. It lists files, but
    opens no image.

    Attributes:
        class_names: Names of the classes as in the dataset's files, in label order.
        spoken_names: Class -> name in prompts, as far as the dataset's files tell.
        splits_by_seed: Whether the test split is a seeded share of the training images.
        known_folders: Names of folders in the dataset's folder whose images have another use.
    """

    class_names: tuple[str, ...]
    spoken_names: Mapping[str, str]
    splits_by_seed: bool
    known_folders: Sequence[str]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines on choices that were made, and on files that are not used."""

    def records(self, split: str) -> list[ImageRecord]:
        """The images of a split, sorted by class and file name.

        Args:
            split: "train" or "test"; a reader may know others, such as "unlabeled".

        Returns:
            Records whose labels are positions in `class_names`, and whose file names are paths
            relative to the dataset's folder, with "/".

        Raises:
            InputError: There is no such split, or a listed image does not exist.
        """


@dataclass(frozen=True, kw_only=True)
class FolderLayout(SplitOptions):
    """YAML fields of `reader: folder`."""

    train_folder: str | None = option(
        None, "folder of the training classes; default: train or training, in any case"
    )
    test_folder: str | None = option(
        None, "folder of the test classes; default: test or testing, else val, valid, validation"
    )
    single_folder: str = option(
        ".", "folder of class folders that is split by seed where there is no training folder"
    )
    drop_classes: tuple[str, ...] = option((), "class folders that are left out")
    sub_folders: bool = option(
        False, "a class may hold its images in several sub-folders and none directly"
    )
    class_order: str = option(
        "name", "order of the labels: by folder name or by number", choices=("name", "number")
    )
    class_names_file: str | None = option(
        None, "JSON object: class folder -> name in prompts; class_names wins over it"
    )


class FolderReader:
    """Reader of class folders in a training and a test folder, or in one that is split by seed.

    Args:
        layout: Fields of the YAML file.
        root: The dataset's folder.
        name: Name of the dataset.
        folders: Class -> its folder, in label order; default: each folder is a class.
        known_folders: Names of folders in `root` whose images have another use.

    Raises:
        InputError: Folders are missing, or are no class folders.
    """

    def __init__(
        self,
        layout: FolderLayout,
        root: Path,
        name: str,
        folders: Mapping[str, str] | None = None,
        known_folders: Sequence[str] = (),
    ):
        # The folders of the splits, and whether the training images are to be split by seed.
        require_root(root)
        self.layout, self.root, self.name = layout, root, name
        self.known_folders = known_folders
        splits = find_splits(root, layout.train_folder, layout.test_folder)
        self.split_dirs, self._splits = splits.found, splits
        first, second = self.split_dirs.get("train"), self.split_dirs.get("test")
        # A training folder without a test folder will not do, unless a share of it is for testing.
        may_split = first is None or layout.test_fraction is not None
        if layout.wanted:
            self.splits_by_seed = second is None and may_split
        else:
            self.splits_by_seed = second is None and find_stored_split(root) is not None
        if self.splits_by_seed:
            first = first or root / layout.single_folder
        if first is None or not first.is_dir():
            raise InputError(self._lack("train"))
        # The training folder decides which classes there are.
        self.train_dir, remarks = first, list(splits.remarks)
        if folders is None:
            folders = {folder: folder for folder in self._class_folders(first)}
            remarks += check_class_folders(root, first, list(folders), layout.sub_folders)
        self.folders = folders
        self.class_names = tuple(folders)
        self._remarks = remarks

    @property
    def remarks(self) -> tuple[str, ...]:
        remarks = list(self._remarks)
        if split_of(self.root.name) == "train":
            siblings = folders_by_split(self.root.parent)
            tests = [f"{p.name}/" for split in TESTING for p in siblings.get(split, ())]
            if tests:
                remarks.append(
                    f"{shown(tests)} beside {self.root.name}/ is not used; to test on it, give "
                    f"{self.root.parent}"
                )
        return tuple(remarks)

    @cached_property
    def spoken_names(self) -> Mapping[str, str]:
        if self.layout.class_names_file is None:
            return {}
        return read_json(self.root / self.layout.class_names_file, dict)

    def records(self, split: str) -> list[ImageRecord]:
        if self.splits_by_seed and split in ("train", "test"):
            return self._halves[split]
        folder = self.train_dir if split == "train" else self.split_dirs.get(split)
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

    def _records_below(self, split_dir: Path) -> list[ImageRecord]:
        labels = {folder: label for label, folder in enumerate(self.folders.values())}
        present = self._class_folders(split_dir)
        unknown = [name for name in present if name not in labels]
        for name in unknown[:1]:
            twins = [f"{known}/" for known in labels if look_alikes([known, name])]
            remedy = "add training images or remove the folder"
            if twins:
                remedy = f"it looks like {shown(twins)} there: give both the same name"
            raise InputError(
                f"{split_dir}: class {', '.join(map(repr, unknown))} is not in {self.train_dir}; "
                f"{remedy}"
            )
        return [
            ImageRecord(path, path.relative_to(self.root).as_posix(), label, class_name)
            for label, (class_name, folder) in enumerate(self.folders.items())
            if folder in present
            for path in images_of_class(split_dir / folder)
        ]

    def _class_folders(self, split_dir: Path) -> list[str]:
        refuse_dangling(split_dir)
        no_classes = {"unlabeled"}
        if split_dir == self.root:
            no_classes |= {"train", *TESTING}
        names = [
            name
            for name in (folder.name for folder in folders_in(split_dir))
            if name not in self.layout.drop_classes
            and (name == self._splits.lone or split_of(name) not in no_classes)
        ]
        if not names:
            hint = ""
            if holds_images(split_dir):
                hint = (
                    " (images lie in it directly; their labels may also stand in metadata.csv, "
                    "columns file_name and label)"
                )
            raise InputError(
                f"{split_dir} has no class folders{hint}; expected {split_dir}/<class>/*.jpg"
            )
        if self.layout.class_order == "number":
            odd = [name for name in names if not name.isdecimal() or len(name) > 20]
            require(not odd, f"{split_dir}: class_order is number, but {shown(odd)} is none")
            names.sort(key=int)
        return names

    def _lack(self, split: str) -> str:
        """The error for a missing split, with advice on what the user may have meant."""
        named = {"train": self.layout.train_folder, "test": self.layout.test_folder}.get(split)
        folder = named or split
        fraction = "give --test_fraction 0.3 to test on a part of the training images"
        if split == "test" and self._splits.untested:
            return f"{self._splits.untested}; {fraction}"
        advice = f"; or {fraction}" if split == "test" else _other_level(self.root)
        if (self.root / folder).is_symlink():
            advice = f"; {folder} is a link that leads nowhere"
        return f"{self.root} has no folder {folder}/; expected {folder}/<class>/*.jpg in it{advice}"


def require_root(root: Path) -> None:
    """Raise InputError unless the dataset folder exists."""
    require(
        root.is_dir(), f"dataset folder {root} does not exist; INSTALL.md shows the expected layout"
    )


def _other_level(root: Path) -> str:
    """Advice for a folder that has no training folder, from how its surroundings look.

    It never tells the user to train on the test images.
    """
    # The dataset is above.
    for parent, steps in ((root.parent, "one level"), (root.parent.parent, "two levels")):
        below = root.relative_to(parent).parts
        splits = folders_by_split(parent)
        if below and split_of(below[0]) and splits.get("train"):
            return f"; it lies {steps} too deep: give {parent}"
    if holds_images(root):
        return f"; images lie in it directly: if they are one class, give {root.parent}"
    # It is here, but not laid out as train/<class>.
    tests = [f"{p.name}/" for split in TESTING for p in folders_by_split(root).get(split, ())]
    others = [child for child in folders_in(root) if split_of(child.name) is None]
    if any(map(holds_images, others)):
        if tests:
            return f"; move the class folders beside {shown(tests)} into a folder train/"
        return (
            "; its folders look like classes themselves: give --test_fraction 0.3 to split them "
            "by seed"
        )
    # It is below.
    inner = {child: folders_by_split(child).get("train", ()) for child in others}
    deeper = [child for child, trains in inner.items() if any(walk(p).images for p in trains)]
    deeper += [child for child in others if any(map(holds_images, folders_in(child)))]
    if deeper:
        names = shown(dict.fromkeys(map(str, deeper)))
        return (
            f"; it lies one level too high: give {names if len(deeper) < 2 else f'one of {names}'}"
        )
    if any(walk(child).images for child in others):
        return "; its images lie several levels deeper"
    return ""
