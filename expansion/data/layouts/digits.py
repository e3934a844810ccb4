"""The embedded digit scans, unpacked to class folders on first use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from expansion.common.config import PROJECT_ROOT
from expansion.data.readers.arrays import move_whole, partial_folder
from expansion.data.readers.folders import FolderLayout, FolderReader

SPLITS = ("prior", "train", "test")


def read_digits(layout: FolderLayout, root: Path, name: str) -> FolderReader:
    """Make the reader of the digits, after unpacking them if necessary.

    Args:
        layout: Fields of the YAML file.
        root: Folder of the digits, made if it does not exist.
        name: Name of the dataset.
    """
    _unpack(root)
    # The embedded checkpoint was trained on prior/.
    return FolderReader(layout, root, name, known_folders=("prior",))


def _unpack(root: Path) -> None:
    """Write the embedded scans as 32x32 PNG files, once; several processes may try together."""
    if root.is_dir():
        return
    with np.load(PROJECT_ROOT / "assets" / "digits" / "digits.npz", allow_pickle=False) as scans:
        images, labels, splits = scans["images"], scans["labels"], scans["splits"]
    with partial_folder(root.parent, "digits") as partial:
        for index, (image, label, split) in enumerate(zip(images, labels, splits, strict=True)):
            folder = partial / SPLITS[split] / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
            grey.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
        move_whole(partial, root)
