"""What an expanded set holds on disk: which images are whole, and the images as records.

An image is a file of its own, or a byte range of a tar that its manifest row names ("tar"); until
its tar is complete it is a hidden file ("staged").
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expansion.errors import InputError
from expansion.manifest import ManifestReader, read_manifest
from expansion.naming import variant_name
from expansion.records import ImageRecord

logger = logging.getLogger(__name__)

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

Item = tuple[ImageRecord, int]  # (real image, variant number)
Pair = tuple[str, int]  # (file_name of the real image, variant number)
Place = tuple[Path, tuple[int, int] | None]  # file, and (first byte, number of bytes) inside a tar


class StoredSet:
    """The images that are whole on disk, whoever made them; `refresh` looks for new ones.

    Args:
        output_dir: Folder of the expanded set.
        stems: file_name of a real image -> `<class folder>/<stem>`.

    Attributes:
        staged: Rows, by file name, of images that were made for a tar.
        packed: Places of images in finished tars, by file name.
    """

    def __init__(self, output_dir: Path, stems: Mapping[str, str]):
        self.output_dir = output_dir
        self.stems = stems
        self.staged: dict[str, dict[str, Any]] = {}
        self.packed: dict[str, Place] = {}
        self._files: set[str] = set()
        self._manifests = ManifestReader(output_dir)
        self.refresh()

    def refresh(self, growing_only: bool = False) -> None:
        """Read what manifests list since the last time; see `ManifestReader.new_lines`."""
        for line in self._manifests.new_lines(growing_only):
            if line.is_event:
                continue
            row = line.row()
            name, place = row["file_name"], image_place(self.output_dir, row)
            if "tar" in row:
                self.packed[name] = place
                self.staged.pop(name, None)
            elif "staged" in row:
                self.staged[name] = row
            else:
                self._files.add(name)

    def name(self, item: Item) -> str:
        """The generated image's path in the set."""
        record, variant = item
        return variant_name(self.stems[record.file_name], variant)

    def lists(self, item: Item) -> bool:
        """Whether a manifest has a row of the image, whole or not."""
        name = self.name(item)
        return name in self.packed or name in self.staged or name in self._files

    def place(self, name: str) -> Place | None:
        """Where the image is whole; None if nowhere."""
        if name in self.packed and is_whole_png(*self.packed[name]):
            return self.packed[name]
        path = None
        if name in self.staged:
            path = self.output_dir / self.staged[name]["staged"]
        elif name in self._files:
            path = self.output_dir / name
        return (path, None) if path and is_whole_png(path) else None

    def missing(self, items: Iterable[Item]) -> set[Pair]:
        """Those of `items` that are not listed or not whole."""
        return {(item[0].file_name, item[1]) for item in items if not self.place(self.name(item))}


def image_place(output_dir: Path, row: Mapping[str, Any]) -> Place:
    """Where the image of a manifest row lies.

    Raises:
        InputError: Outside the folder, or at no possible place of a tar.
    """
    name = row.get("tar") or row.get("staged") or row["file_name"]
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{output_dir}: the manifest names {name!r}, outside the folder")
    if "tar" not in row:
        return output_dir / name, None
    numbers = (row.get("offset"), row.get("size"))
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InputError(
            f"{output_dir}: the manifest gives {row['file_name']!r} offset and size {numbers}; "
            f"remove the manifest of {name}, and expand.py makes it again"
        )
    return output_dir / name, numbers


def is_whole_png(path: Path, byte_range: tuple[int, int] | None = None) -> bool:
    """Whether the file, or the part of it, ends as a PNG must; a truncated one does not."""
    try:
        with path.open("rb") as file:
            if byte_range is None:
                file.seek(-len(PNG_END), os.SEEK_END)
            else:
                file.seek(sum(byte_range) - len(PNG_END))
            return file.read(len(PNG_END)) == PNG_END
    except (OSError, ValueError, OverflowError):  # a place before the file's start, or beyond any
        return False


def read_expansion(
    output_dir: Path, class_names: Sequence[str], on_error: str = "fail"
) -> list[ImageRecord]:
    """Generated images as records, labelled by the manifest.

    Args:
        on_error: What a missing file does: "fail" raises, "skip" leaves it out with a warning.

    Raises:
        InputError: No manifest, a class that the dataset lacks, a file outside the folder or
        missing.
    """
    rows = read_manifest(output_dir)
    if not rows:
        raise InputError(f"{output_dir} holds no expanded set; make it first with expand.py")
    labels = {name: label for label, name in enumerate(class_names)}
    sizes: dict[Path, int] = {}
    records, absent = [], []
    for row in rows:
        if row["class"] not in labels:
            raise InputError(
                f"{output_dir}: the manifest names class {row['class']!r}, which the dataset "
                "lacks; give the expansion that was made from this dataset"
            )
        record = generated_record(output_dir, row, labels[row["class"]])
        if record.path not in sizes:
            there = os.path.isfile(record.path)
            sizes[record.path] = record.path.stat().st_size if there else -1
        if sum(record.byte_range or (0, 0)) > sizes[record.path]:
            absent.append(row["file_name"])
            continue
        records.append(record)
    if absent:
        _report_absent(output_dir, absent, on_error)
    return records


def generated_record(output_dir: Path, row: Mapping[str, Any], label: int) -> ImageRecord:
    """The image of a manifest row, whether it is there or not."""
    path, byte_range = image_place(output_dir, row)
    return ImageRecord(
        path, row["file_name"], label, row["class"], row["source"], byte_range=byte_range
    )


def _report_absent(output_dir: Path, absent: Sequence[str], on_error: str) -> None:
    listed = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    message = f"{output_dir} lacks {len(absent)} images of its manifest: {listed}"
    if on_error == "fail":
        raise InputError(
            f"{message}; run the same expand.py command again to make them, or go on without "
            "them with --on_error skip"
        )
    logger.warning("skipped: %s", message)
