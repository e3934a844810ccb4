"""Checks of class folders: they must hold images, and be no splits, masks or wrappers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from expansion.common.errors import require, shown
from expansion.data.readers.split_folders import TESTING, folders_by_split, hints_at_split
from expansion.images.file_trees import folders_in, holds_images, walk

# Names of the folders of datasets for segmentation or detection: pictures, and drawings on them.
PICTURES = frozenset(
    "image images img imgs jpegimages jpgs photo photos picture pictures original originals".split()
)
ANNOTATIONS = frozenset(
    "mask masks annotation annotations label labels segmentation segmentations segmentationclass "
    "groundtruth ground_truth gt trimap trimaps bbox bboxes boxes".split()
)

# Suffixes of photographs that other programs must convert first, from telephones and cameras.
CONVERTIBLE = frozenset(
    ".heic .heif .hif .jxl .raw .dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .psd .svg".split()
)


def check_class_folders(
    root: Path, parent: Path, names: Sequence[str], sub_folders: bool
) -> list[str]:
    """Check folders that are to be taken for classes.

    Args:
        root: The dataset's folder.
        parent: The folder that holds them.
        names: Their names.
        sub_folders: A class may hold its images in several sub-folders and none directly.

    Returns:
        Remarks on classes whose images are in sub-folders.

    Raises:
        InputError: The folders are splits, pictures and masks, a wrapper of the real class folders,
            or hold classes themselves.
    """
    _refuse_splits(parent, names)
    _refuse_wrapper(root, parent, names)
    _refuse_annotations(parent, names)
    deep, remarks = [], []
    for name in names:
        several, inner = _inner_folders(parent / name)
        if several:
            deep += [f"{name}/{folder}" for folder in inner]
        remarks += [f"{name}/{folder} ({count})" for folder, count in inner.items()]
    outer = list(dict.fromkeys(path.split("/")[0] for path in deep))
    require(
        sub_folders or not deep,
        f"{parent}: {shown(outer)} hold no images directly but several folders of them "
        f"({shown(deep)}); if those are the classes, move them up to {parent}; if "
        f"{''.join(outer[:1])} is one class, move its images up into it, or set sub_folders: true "
        "in a YAML file of configs/datasets",
    )
    if not remarks:
        return []
    return [f"images in sub-folders belong to the class of the outer folder: {shown(remarks)}"]


def images_of_class(folder: Path) -> list[Path]:
    """The images of a class folder, at any depth, sorted.

    Raises:
        InputError: There are none, or links lead nowhere.
    """
    tree = walk(folder)
    _refuse_links(folder, tree.nowhere)
    others = f", only {counted(tree.others)}, which cannot be read" if tree.others else ""
    require(
        bool(tree.images),
        f"class folder {folder} holds no images{others}; add images or remove the folder",
    )
    return tree.images


def counted(files: Iterable[Path]) -> str:
    """Count files by suffix: '3 .heic (convert to JPEG or PNG), 1 without suffix'."""
    suffixes = [path.suffix.lower() for path in files]
    counts = sorted(Counter(suffixes).items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(
        f"{count} {suffix or 'without suffix'}"
        + (" (convert to JPEG or PNG)" if suffix in CONVERTIBLE else "")
        for suffix, count in counts
    )


def refuse_dangling(folder: Path) -> None:
    """Raise InputError for links in `folder` that lead nowhere, as a lost class folder would."""
    links = [path for path in folder.iterdir() if path.is_symlink() and not os.path.exists(path)]
    _refuse_links(folder, sorted(path for path in links if not path.name.startswith(".")))


def _refuse_links(folder: Path, links: Sequence[Path]) -> None:
    names = shown(path.relative_to(folder).as_posix() for path in links)
    require(
        not links,
        f"{folder}: links that lead nowhere: {names}; bring back what they led to, or remove them",
    )


def _refuse_annotations(parent: Path, names: Sequence[str]) -> None:
    pictures = [name for name in names if name.strip().casefold() in PICTURES]
    drawn = [name for name in names if name.strip().casefold() in ANNOTATIONS]
    names_shown = shown(f"{name}/" for name in pictures + drawn)
    what = "pictures and their annotations, no classes" if drawn else "no class, by its name"
    require(
        not (pictures and (drawn or len(names) == 1)),
        f"{parent} holds {names_shown}: {what}; lay the pictures out as train/<class>/*.jpg, or "
        "list them with their classes in metadata.csv (columns file_name and label)",
    )


def _refuse_splits(parent: Path, names: Sequence[str]) -> None:
    """Refuse folders that hold splits, or that look like splits with unusual names."""
    for name in names:
        inner = folders_by_split(parent / name)
        tests = [path.name for split in TESTING for path in inner.get(split, ())]
        both = [path.name for path in inner.get("train", ())] + tests
        require(
            not (inner.get("train") and tests),
            f"{parent}: {name}/ is no class, it holds the split folders {shown(both)}; give "
            f"{parent / name}, or lay the images out as train/<class>/*.jpg and "
            "test/<class>/*.jpg",
        )
    rests: dict[str, dict[str, str]] = {}
    for name in names:
        split, rest = hints_at_split(name)
        if split in ("train", *TESTING):
            rests.setdefault(rest, {})[split] = f"{name}/"
    for folders in rests.values():
        require(
            not ("train" in folders and len(folders) > 1),
            f"{parent}: {shown(folders.values())} look like splits, no classes; rename them to "
            "train and test",
        )


def _refuse_wrapper(root: Path, parent: Path, names: Sequence[str]) -> None:
    """Refuse a single class folder that really holds the class folders."""
    inner = parent / names[0]
    remedy = f"move the content of {inner} up to {parent}"
    if parent.samefile(root):
        remedy = f"give {inner}"
    require(
        len(names) > 1 or holds_images(inner) or not any(map(holds_images, folders_in(inner))),
        f"{parent} holds only the folder {names[0]}/, and the class folders lie in that, "
        f"one level deeper; {remedy}",
    )


def _inner_folders(folder: Path) -> tuple[bool, dict[str, int]]:
    """Where the images of a class folder are, if not directly in it.

    Returns:
        Whether all of them are in several sub-folders, and sub-folder -> number of images.
    """
    parents = Counter(path.parent for path in walk(folder).images)
    places = {path.relative_to(folder).parts: count for path, count in parents.items()}
    common = os.path.commonprefix(list(places))
    inner: Counter[str] = Counter()
    for parts, count in places.items():
        if parts:
            inner["/".join(parts[: len(common) + 1])] += count
    return bool(places) and common not in places, dict(inner)
