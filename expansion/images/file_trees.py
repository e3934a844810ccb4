"""What lies below a folder: images, files that are not read, links, and litter of other programs.

Links to folders and images are followed, but not those that lead back to where the walk came from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from expansion.common.errors import InputError
from expansion.images.pixels import IMAGE_SUFFIXES

# Names that file servers, desktops and archives leave behind, beside those with a leading dot.
LITTER = frozenset(
    (
        "__macosx", "__pycache__", "@eadir", "@tmp", "@__thumb", "@recycle", "@recently-snapshot",
        "#recycle", "#snapshot", "~snapshot", "$recycle.bin", "lost+found", "found.000",
        "system volume information", "network trash folder", "temporary items",
        "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r",
    )
)  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name belongs to another program, or is hidden."""
    return name.startswith(".") or name.casefold() in LITTER


@dataclass
class Tree:
    """The files and links below a folder.

    Attributes:
        images: Image files, sorted.
        others: Visible files with suffixes that are not read, sorted.
        nowhere: Links to files or folders that do not exist, sorted.
        loops: Links back to a folder above them, which are not followed, sorted.
        litter: Folder of another program -> number of images in it, for folders with some.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    nowhere: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    litter: dict[Path, int] = field(default_factory=dict)


def walk(folder: Path) -> Tree:
    """Look at everything below `folder`.

    Raises:
        InputError: A folder cannot be read; the message names it.
    """
    tree = Tree()
    # Each folder waits with the real paths of itself and of all above it, to recognise loops.
    waiting: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while waiting:
        waiting += _look(*waiting.pop(), tree)
    for paths in (tree.images, tree.others, tree.nowhere, tree.loops):
        paths.sort()
    return tree


def image_files(folder: Path) -> list[Path]:
    """Images below `folder` that are neither hidden nor litter, sorted; none without a folder."""
    return walk(folder).images if folder.is_dir() else []


def folders_in(folder: Path) -> list[Path]:
    """Folders in `folder` that are no litter, sorted by name; links to folders count as folders."""
    return sorted(
        (p for p in folder.iterdir() if not is_litter(p.name) and os.path.isdir(p)),
        key=lambda p: p.name,
    )


def holds_images(folder: Path) -> bool:
    """Whether images lie directly in `folder`."""
    return any(
        not is_litter(entry.name) and _is_image(entry.name) and os.path.isfile(entry.path)
        for entry in os.scandir(folder)
    )


def _look(folder: Path, chain: tuple[str, ...], tree: Tree) -> list[tuple[Path, tuple[str, ...]]]:
    """Add what lies directly in `folder` to the tree; returns the folders to go on with."""
    further = []
    for entry in _entries(folder):
        path = folder / entry.name
        link = entry.is_symlink()
        is_folder = os.path.isdir(path) if link else entry.is_dir()
        if is_litter(entry.name):
            count = _images_in_litter(path) if is_folder and not link else 0
            if count:
                tree.litter[path] = count
        elif is_folder:
            real = os.path.realpath(path) if link else os.path.join(chain[0], entry.name)
            if any(above == real or above.startswith(f"{real.rstrip('/')}/") for above in chain):
                tree.loops.append(path)
            else:
                further.append((path, (real, *chain)))
        elif link and not os.path.exists(path):
            tree.nowhere.append(path)
        elif _is_image(entry.name) and (os.path.isfile(path) if link else entry.is_file()):
            tree.images.append(path)
        else:
            tree.others.append(path)
    return further


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"cannot read the folder {folder}: {error.strerror}; change its permissions or remove "
            "it from the dataset"
        ) from error


def _images_in_litter(folder: Path) -> int:
    """Number of images at any depth; folders that cannot be read are passed over."""
    return sum(
        _is_image(name) and not name.startswith(".")
        for _, _, names in os.walk(folder)
        for name in names
    )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
