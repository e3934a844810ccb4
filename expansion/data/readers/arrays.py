"""Reader of datasets that come as arrays: they are unpacked once to folders of PNG files.

<root>/{train,test}/<class folder>/<index>.png
<root>/unlabeled/<thousand>/<index>.png
<root>/unpacked.json   settings, the array files, and number, name and folder of every class;
                       written before them
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expansion.common.config import option
from expansion.common.errors import brief, require, shown
from expansion.common.files import file_fingerprint, write_atomic
from expansion.common.seeding import stable_seed
from expansion.common.texts import class_text, read_json
from expansion.data.naming import folder_names
from expansion.data.readers.array_files import FORMATS, ArrayFiles
from expansion.data.readers.folders import FolderLayout, FolderReader, require_root
from expansion.images.file_trees import image_files

logger = logging.getLogger(__name__)

UNPACKED = "unpacked.json"
REMEDY = f"remove {UNPACKED} and the folders of the splits (train, test, unlabeled) to unpack again"


@dataclass(frozen=True, kw_only=True)
class ArraysLayout:
    """YAML fields of `reader: arrays`."""

    format: str = option("npz", "kind of array files", choices=tuple(FORMATS))
    file: str | None = option(None, "name of the npz file")
    classes: tuple[str, ...] = option(
        (), "class names in label order, where the files do not hold them"
    )
    train_per_class: int | None = option(
        None, "keep so many training images of each class, chosen by seed"
    )
    split_seed: int = option(0, "which ones")
    train_archive: str | None = option(
        None, "folder of class folders that, where it is there, holds the training images instead"
    )


class UnpackedReader(FolderReader):
    """Reader of unpacked folders.

    Args:
        root: The dataset's folder.
        name: Name of the dataset.
        folders: Class -> its folder, in label order; None if `unpacked.json` does not exist.
        known_folders: Names of folders in `root` whose images have another use.
        told: Lines on parts of the arrays that were not unpacked.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        folders: Mapping[str, str] | None,
        known_folders: Sequence[str],
        told: Sequence[str],
    ):
        super().__init__(FolderLayout(), root, name, folders, known_folders)
        self._told = tuple(told)

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Lines on choices that were made, and on files and arrays that are not used."""
        return (*super().remarks, *self._told)


def read_arrays(layout: ArraysLayout, root: Path, name: str) -> FolderReader:
    """Make the reader of a dataset of arrays, after unpacking them if necessary.

    Args:
        layout: Fields of the YAML file.
        root: The dataset's folder.
        name: Name of the dataset.

    Raises:
        InputError: Array files are missing or damaged, or were unpacked with other settings, or
            are others now.
    """
    require_root(root)
    if not (root / "train").is_dir():
        _unpack(layout, root)
    folders, told = None, []
    if (root / UNPACKED).is_file():  # else folders that somebody else unpacked
        description = read_json(root / UNPACKED, dict)
        wanted = _settings(layout)
        described = description.get("settings")
        used = {key: described.get(key) for key in wanted} if isinstance(described, dict) else {}
        require(
            used == wanted,
            f"{root} was unpacked with other settings ({brief(used)} there, {wanted} "
            f"now); {REMEDY}",
        )
        _check_unchanged(root, description.get("files", {}))
        folders = _described_folders(root, description.get("classes"))
        told = description.get("remarks", [])
        is_list = isinstance(told, list) and all(isinstance(line, str) for line in told)
        require(is_list, f"{root / UNPACKED}: remarks are no list of text; remove them")
    known = [layout.train_archive] if layout.train_archive else []
    return UnpackedReader(root, name, folders, known, told)


def _check_unchanged(root: Path, files: Any) -> None:
    """Raise InputError for an array file with other content than when it was unpacked.

    Args:
        files: Path below the root -> [bytes, time of modification in ns, fingerprint].
    """
    is_dict = isinstance(files, dict)
    require(is_dict, f"{root / UNPACKED}: files is {brief(files)}, not a dictionary; {REMEDY}")
    for name, state in files.items():
        is_list = isinstance(state, list) and len(state) == 3
        require(is_list, f"{root / UNPACKED}: {brief(name)} is {brief(state)}; {REMEDY}")
        path, (size, time, fingerprint) = root / name, state
        if not path.is_file():  # no longer needed
            continue
        stat = path.stat()
        same = stat.st_size == size
        same = same and (stat.st_mtime_ns == time or file_fingerprint(path) == fingerprint)
        require(
            same,
            f"{path} is not the file that {root} was unpacked from; bring it back, or {REMEDY}",
        )


def _described_folders(root: Path, rows: Any) -> dict[str, str]:
    """Class -> its folder, from the rows of `unpacked.json`."""
    is_rows = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    texts = [row.get(key) for row in rows for key in ("name", "folder")] if is_rows else [None]
    require(
        all(isinstance(text, str) for text in texts),
        f"{root / UNPACKED} does not describe the classes; {REMEDY}",
    )
    return {row["name"]: row["folder"] for row in rows}


@contextmanager
def partial_folder(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder in `parent`, whose content is to be renamed; it is removed at the end.

    Args:
        parent: Is made if it does not exist.
        name: Part of the folder's name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        partial.chmod(0o755)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_whole(folder: Path, target: Path) -> None:
    """Rename a finished folder, unless another process has put one in its place already."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _settings(layout: ArraysLayout) -> dict[str, Any]:
    """The settings that decide the unpacked images, in the form that JSON gives back."""
    return json.loads(json.dumps(asdict(layout)))


def _unpack(layout: ArraysLayout, root: Path) -> None:
    """Write the images of all splits; the training folder comes last and marks the end."""
    # Read the arrays, and decide on the folders of the classes.
    sources = ArrayFiles(root, layout.file)
    arrays = FORMATS[layout.format](sources)
    names = arrays.class_names or tuple(
        class_text(f"{root}: classes of the YAML file", name) for name in layout.classes
    )
    require(bool(names), f"{root}: the files hold no class names; give classes in the YAML file")
    require(len(set(names)) == len(names), f"{root}: a class name occurs twice in {names}")
    folders = folder_names(names)
    classes = [{"id": i, "name": n, "folder": folders[n]} for i, n in enumerate(names)]
    archive = root / layout.train_archive if layout.train_archive else None
    archive = archive if archive and archive.is_dir() else None
    settings = {**_settings(layout), "archive_used": archive is not None}
    remarks = list(arrays.remarks)
    # Write each split to a temporary folder: all images, a seeded choice, or those of an archive.
    with partial_folder(root, "unpacking") as partial:
        for split, (images, labels) in arrays.splits.items():
            _check(root, split, images, labels, len(names))
            logger.info("%s: unpacking %d %s images, once", root, len(images), split)
            indices: Sequence[int] = range(len(images))
            if split == "train" and layout.train_per_class is not None:
                indices = _seeded(labels, names, layout.train_per_class, layout.split_seed)
                if not archive:
                    remarks.append(_left_out(len(images), indices, layout.train_per_class))
            if split == "train" and archive:
                remarks.append(f"used: the training images of {archive.name}/, not of the arrays")
                _copy_archive(archive, folders, partial / split)
            elif labels is None:
                places = [f"{index // 1000:03d}" for index in indices]
                _write(images, indices, places, partial / split)
            else:
                places = [folders[names[labels[index]]] for index in indices]
                _write(images, indices, places, partial / split)
        # Describe them, then move them into place.
        files = {path.relative_to(root).as_posix(): _state_of(path) for path in sources.found}
        described = {"settings": settings, "files": files, "classes": classes, "remarks": remarks}
        write_atomic(root / UNPACKED, json.dumps(described, indent=1) + "\n")
        for split in sorted(arrays.splits, key=lambda split: split == "train"):
            move_whole(partial / split, root / split)


def _state_of(path: Path) -> tuple[int, int, str]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, file_fingerprint(path)


def _check(
    root: Path, split: str, images: np.ndarray, labels: np.ndarray | None, num_classes: int
) -> None:
    """Raise InputError for arrays that are no 8-bit images, or labels that do not fit them."""
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    require(
        is_image and images.dtype == np.uint8 and len(images) > 0,
        f"{root}: expected {split} images as 8-bit values of shape (N, height, width[, 3]), got "
        f"{images.dtype} {images.shape}",
    )
    if labels is None:
        return
    require(
        len(labels) == len(images),
        f"{root}: {len(images)} {split} images, but {len(labels)} labels; download both again",
    )
    low, high = int(labels.min()), int(labels.max())
    require(
        0 <= low and high < num_classes,
        f"{root}: {split} labels from {low} to {high}, but there are {num_classes} class names, "
        f"of the numbers 0 to {num_classes - 1}",
    )


def _seeded(labels: np.ndarray, names: Sequence[str], count: int, seed: int) -> list[int]:
    """Choose `count` images of each class by a hash of seed and index; returns sorted indices."""
    kept: list[int] = []
    for label, name in enumerate(names):
        members = np.flatnonzero(labels == label).tolist()
        require(
            len(members) >= count,
            f"train_per_class {count}: class {name!r} has only {len(members)} images",
        )
        kept += sorted(members, key=lambda i: stable_seed("arrays", seed, i))[:count]
    return sorted(kept)


def _left_out(num_images: int, kept: Sequence[int], per_class: int) -> str:
    count = num_images - len(kept)
    return f"ignored: {count} of {num_images} training images (train_per_class {per_class})"


def _write(images: np.ndarray, indices: Sequence[int], places: Sequence[str], target: Path) -> None:
    """Save the images of some indices, each in its own of the folders `places` below `target`."""
    for place in sorted(set(places)):
        (target / place).mkdir(parents=True)
    for index, place in zip(indices, places, strict=True):
        pixels = images[index]
        pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        Image.fromarray(np.ascontiguousarray(pixels)).save(target / place / f"{index:06d}.png")


def _copy_archive(archive: Path, folders: Mapping[str, str], target: Path) -> None:
    """Copy the images of an archive's class folders to the folders of these classes in `target`."""
    present = sorted(p.name for p in archive.iterdir() if p.is_dir() and p.name[0] != ".")
    odd = sorted(set(present) ^ set(folders))
    require(
        not odd,
        f"{archive}: its folders are not the {len(folders)} classes: {shown(odd)}; remove it to "
        "draw the images by seed",
    )
    for name in present:
        files = image_files(archive / name)
        require(bool(files), f"class folder {archive / name} holds no images")
        (target / folders[name]).mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, target / folders[name] / file.name)
