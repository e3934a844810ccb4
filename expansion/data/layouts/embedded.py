"""Small sets that lie in `assets/` as one array file, unpacked to class folders on first use.

The file holds `images` (N, H, W) uint8, `labels` (N,) and `splits` (N,), the position in the
layout's list of splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from expansion.common.config import PROJECT_ROOT, option
from expansion.data.readers.arrays import move_whole, partial_folder
from expansion.data.readers.folders import FolderLayout, FolderReader

SIDE = 32  # pixels of the files; smaller images are enlarged (bicubic)


@dataclass(frozen=True, kw_only=True)
class EmbeddedLayout(FolderLayout):
    """YAML fields of `reader: embedded`."""

    file: str = option("", "array file below assets/")
    splits: tuple[str, ...] = option((), "folders of the splits, in the order of their numbers")
    white: int = option(255, "the value of the array that becomes white")


def read_embedded(layout: EmbeddedLayout, root: Path, name: str) -> FolderReader:
    """Make the reader of an embedded set, after unpacking it if necessary.

    Args:
        layout: Fields of the YAML file.
        root: Folder of the set, made if it does not exist.
        name: Name of the dataset.
    """
    if not root.is_dir():
        _unpack(layout, root)
    # What is neither for training nor for testing trained a diffusion model or chooses settings.
    others = set(layout.splits) - {"train", layout.test_folder or "test"}
    return FolderReader(layout, root, name, known_folders=sorted(others))


def _unpack(layout: EmbeddedLayout, root: Path) -> None:
    """Write the images as PNG files; several processes may try together."""
    with np.load(PROJECT_ROOT / "assets" / layout.file, allow_pickle=False) as arrays:
        images, labels, splits = arrays["images"], arrays["labels"], arrays["splits"]
    with partial_folder(root.parent, root.name) as partial:
        for index, (image, label, split) in enumerate(zip(images, labels, splits, strict=True)):
            folder = partial / layout.splits[split] / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(np.rint(image * (255 / layout.white)).astype(np.uint8))
            if grey.size != (SIDE, SIDE):
                grey = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            grey.save(folder / f"{index:04d}.png")
        move_whole(partial, root)
