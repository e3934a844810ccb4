"""Lists images in a dataset's folder that are not used, so that none is missed unnoticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from expansion.common.errors import shown
from expansion.data.readers.class_folders import CONVERTIBLE, counted
from expansion.data.readers.split_folders import split_of
from expansion.images.file_trees import walk

# Suffixes of files that describe images; these lie beside the images' folders.
TEXT_SUFFIXES = frozenset(
    ".txt .json .jsonl .csv .tsv .xml .yaml .yml .md .html .log .parquet".split()
)
Parts = tuple[str, ...]  # names of the folders in a path below the dataset's folder
MOST_FOLDERS = 5  # number of folders that are named one by one


def unused_remarks(root: Path, used: Iterable[Path], known: Collection[str] = ()) -> list[str]:
    """A line for each folder or kind of file that is not used.

    Args:
        root: The dataset's folder.
        used: Paths of the training and test images, below it.
        known: Names of folders in it that have another use.
    """
    # Count the unused images: in folders that are not used at all, and beside used images.
    tree, used = walk(root), set(used)
    parents = {path.relative_to(root).parts for path in {path.parent for path in used}}
    trunk = {parts[:depth] for parts in parents for depth in range(len(parts) + 1)}
    whole: Counter[Parts] = Counter()
    partly: Counter[Parts] = Counter()
    for parent, count in Counter(path.parent for path in tree.images if path not in used).items():
        parts = parent.relative_to(root).parts
        if parts[:1] and parts[0] in known:
            continue
        tops = (parts[:depth] for depth in range(1, len(parts) + 1))
        top = next((top for top in tops if top not in trunk), None)
        (partly if top is None else whole)[parts if top is None else top] += count
    # Say so, the largest units first.
    litter = {folder.relative_to(root).parts: count for folder, count in tree.litter.items()}
    lines = _folder_lines(root, {**whole, **litter})
    lines += [f"ignored: {_images(n)} in {_title(parts)}" for parts, n in sorted(partly.items())]
    others = [path for path in tree.others if _may_be_missed(root, path, parents, trunk)]
    if others:
        lines.append(f"ignored: {counted(others)}")
    if tree.loops:
        names = shown(path.relative_to(root).as_posix() for path in tree.loops)
        lines.append(f"not followed, as they lead back: the links {names}")
    num_ignored = sum(whole.values()) + sum(partly.values()) + sum(litter.values())
    if num_ignored:
        num_images = len(used) + num_ignored
        lines.append(f"images: {num_images} found = {len(used)} used + {num_ignored} ignored")
    return lines


def _folder_lines(root: Path, folders: dict[Parts, int]) -> list[str]:
    lines = []
    for parts, count in sorted(folders.items())[:MOST_FOLDERS]:
        use = ""
        if len(parts) == 1 and split_of(parts[0]) == "unlabeled":
            use = f"; to use them: --unlabeled_dir {root / parts[0]}"
        lines.append(f"ignored: folder {'/'.join(parts)}/ ({_images(count)}{use})")
    more = sorted(folders.items())[MOST_FOLDERS:]
    if more:
        total = sum(count for _, count in more)
        lines.append(f"ignored: {len(more)} more folders ({_images(total)})")
    return lines


def _may_be_missed(
    root: Path, path: Path, parents: Collection[Parts], trunk: Collection[Parts]
) -> bool:
    """Whether a file that is not read may be an image that its owner expects to be used.

    Args:
        root: The dataset's folder.
        path: The file.
        parents: Folders that hold used images.
        trunk: These folders and all above them.
    """
    parts, suffix = path.parent.relative_to(root).parts, path.suffix.lower()
    if len(parts) < 2 and suffix in TEXT_SUFFIXES:
        return False
    return suffix in CONVERTIBLE or (parts[:1] in trunk if parts else parts in parents)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _title(parts: Parts) -> str:
    return f"{'/'.join(parts)}/" if parts else "the dataset folder itself"
