"""Puts real and generated images into one folder: names, links or copies, and metadata."""

from __future__ import annotations

import filecmp
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from expansion.common.errors import require, shown
from expansion.common.files import write_atomic
from expansion.data.naming import distinct_names
from expansion.images.records import ImageRecord

# Suffixes that torchvision's ImageFolder loads; Hugging Face's imagefolder loads these as well.
LOADED = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "test")
PARTIAL = re.compile(r"\..*\.partial")  # files that a killed process leaves
LINKED, POINTED, COPIED, ANEW = "hard links", "symbolic links", "copies", "written anew as PNG"


@dataclass(frozen=True)
class Part:
    """The real and generated images of a split."""

    real: Sequence[ImageRecord]
    generated: Sequence[ImageRecord] = ()

    @property
    def records(self) -> Iterator[ImageRecord]:
        """All images, the real ones first."""
        yield from self.real
        yield from self.generated


class Entry(NamedTuple):
    """An image with its path in the folder without suffix, `<split>/<class folder>/<stem>`."""

    record: ImageRecord
    stem: str


@dataclass(frozen=True)
class Merge:
    """The content of a folder of real and generated images.

    Attributes:
        title: Name of the dataset.
        class_names: Names of the classes, by label.
        folders: Class -> its folder.
        parts: Split -> its images.
        rows: file_name of a generated image -> its manifest row.
    """

    title: str
    class_names: Sequence[str]
    folders: Mapping[str, str]
    parts: Mapping[str, Part]
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def generated(self) -> list[ImageRecord]:
        """All generated images."""
        return [record for part in self.parts.values() for record in part.generated]

    @cached_property
    def counts(self) -> dict[str, Counter[tuple[str, bool]]]:
        """Split -> number of images by class and by whether they are generated."""
        return {
            split: Counter((r.class_name, r.source is not None) for r in part.records)
            for split, part in self.parts.items()
        }

    @cached_property
    def entries(self) -> dict[str, list[Entry]]:
        """Split -> its images, each with a path of its own."""
        return {split: _entries(split, part, self.folders) for split, part in self.parts.items()}

    @cached_property
    def plain(self) -> set[Path]:
        """Files of real images that a plain loader reads just as this project does."""
        records = [record for part in self.parts.values() for record in part.real]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            answers = pool.map(reads_plainly, records)
            return {record.path for record, plain in zip(records, answers, strict=True) if plain}

    def file_name(self, entry: Entry) -> str:
        """The path of an image below the folder, with its suffix."""
        record = entry.record
        kept = record.source is None and record.path in self.plain
        return f"{entry.stem}{record.path.suffix.lower() if kept else '.png'}"


def _entries(split: str, part: Part, folders: Mapping[str, str]) -> list[Entry]:
    by_class: dict[str, dict[str, str]] = {}
    keys = [("" if r.source is None else "generated ") + r.file_name for r in part.records]
    for key, record in zip(keys, part.records, strict=True):
        stem = PurePosixPath(record.file_name).stem
        by_class.setdefault(record.class_name, {})[key] = stem
    stems = {name: distinct_names(members) for name, members in by_class.items()}
    return [
        Entry(record, f"{split}/{folders[record.class_name]}/{stems[record.class_name][key]}")
        for key, record in zip(keys, part.records, strict=True)
    ]


def reads_plainly(record: ImageRecord) -> bool:
    """Whether Pillow alone, as loaders of folders use it, gives the same image as `load`."""
    if record.part or record.path.suffix.lower() not in LOADED:
        return False
    image = record.load()
    with Image.open(record.path) as opened:
        plain = opened.convert("RGB")
    return plain.size == image.size and plain.tobytes() == image.tobytes()


def write_images(merge: Merge, target: Path, copy: bool) -> Counter[str]:
    """Write, link or copy every image that is not in the folder yet.

    Args:
        merge: The content of the folder.
        target: The folder.
        copy: Copy files instead of linking them.

    Returns:
        The number of images that are links, copies or written anew.

    Raises:
        InputError: The folder holds other files, which loaders would take for images of the set.
    """
    # The folder may hold these names and no others.
    names = {merge.file_name(e): e.record for entries in merge.entries.values() for e in entries}
    folders = [f"{split}/{folder}" for split in merge.parts for folder in merge.folders.values()]
    _refuse_others(
        target, {*folders, *merge.parts, *(f"{s}/metadata.jsonl" for s in SPLITS), *names}
    )
    # Every class needs a folder, even an empty one: loaders number the classes by their folders.
    for folder in folders:
        (target / folder).mkdir(parents=True, exist_ok=True)

    def write(item: tuple[str, ImageRecord]) -> str:
        name, record = item
        if record.source is None and record.path not in merge.plain:
            return _write(target / name, _as_png(record), ANEW)
        if record.part:
            return _write(target / name, record.read_bytes(), COPIED)
        if copy:
            return _write(target / name, record.path.read_bytes(), COPIED)
        return _link(record.path, target / name)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return Counter(pool.map(write, names.items()))


def _refuse_others(target: Path, names: set[str]) -> None:
    """Raise InputError if split folders hold anything but `names`, or links to folders."""
    strange = []
    for split in SPLITS:
        paths = [target / split, *(target / split).rglob("*")]
        for path in paths if os.path.lexists(target / split) else []:
            name = path.relative_to(target).as_posix()
            ours = name in names and not (path.is_dir() and path.is_symlink())
            if not ours and not PARTIAL.fullmatch(path.name):
                strange.append(name)
    require(
        not strange,
        f"{target} holds {len(strange)} files that do not belong to it: {shown(sorted(strange))}; "
        "remove them",
    )


def _as_png(record: ImageRecord) -> bytes:
    file = io.BytesIO()
    record.load().save(file, format="PNG")
    return file.getvalue()


def _write(path: Path, content: bytes, kind: str) -> str:
    if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)
    return kind


def _link(source: Path, path: Path) -> str:
    """Make a hard link, which survives if the source is moved; else a symbolic link, else a copy.

    Returns:
        The word for what it is now.
    """
    real = os.path.realpath(source)
    if path.is_file() and (os.path.samefile(real, path) or filecmp.cmp(real, path, shallow=False)):
        return POINTED if path.is_symlink() else LINKED if os.path.samefile(real, path) else COPIED
    path.unlink(missing_ok=True)
    for make, kind in ((os.link, LINKED), (os.symlink, POINTED)):
        try:
            make(real, path)
            return kind
        except OSError:  # another disk, too many links, a file system without
            continue
    return _write(path, source.read_bytes(), COPIED)


def write_metadata(merge: Merge, target: Path) -> None:
    """Write `metadata.jsonl` of every split, all with the same columns of the same types."""
    for split, entries in merge.entries.items():
        lines = [json.dumps(_row(merge, split, entry), ensure_ascii=False) for entry in entries]
        write_atomic(target / split / "metadata.jsonl", "".join(f"{line}\n" for line in lines))


def _row(merge: Merge, split: str, entry: Entry) -> dict[str, Any]:
    record = entry.record
    made = merge.rows[record.file_name] if record.source is not None else {}
    return {
        "file_name": merge.file_name(entry).removeprefix(f"{split}/"),
        "label": record.label,
        "class": record.class_name,
        "synthetic": record.source is not None,
        "source": record.source or record.file_name,
        "method": str(made.get("method", "")),
        "prompt": str(made.get("prompt", "")),
        "model": str(made.get("model", "")),
    }
