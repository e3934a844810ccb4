"""Where the image of a manifest row is, and whether the file there holds that image.

An image is a file of its own, or a byte range of a tar that its row names ("tar"). Older versions
kept images that were to be packed in a hidden folder ("staged"). The row also holds the last
checksum of the PNG ("png_crc32"). It shows whether another image has been written over the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expansion.common.errors import InputError
from expansion.images.records import ImageRecord, PackedRecord

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
CHECKSUM_BYTES = 4  # the checksum of the last block of pixels, just before the end

EXPANSION = "_expansion"  # <dataset>_expansion holds the expanded sets of a dataset


class Place(NamedTuple):
    """A file, or a part of a tar: first byte and number of bytes."""

    path: Path
    byte_range: tuple[int, int] | None = None


def expansion_folder(data_dir: str | Path, dataset_title: str, exp: str) -> Path:
    """Where an expanded set lies, unless its folder is given.

    Args:
        data_dir: Where named datasets lie.
        dataset_title: What folders of results call the dataset.
        exp: Name of the set.
    """
    return Path(data_dir) / f"{dataset_title}{EXPANSION}" / exp


def image_place(output_dir: Path, row: Mapping[str, Any]) -> Place:
    """Where the image of a manifest row is.

    Args:
        output_dir: Folder of the expanded set.
        row: Manifest row.

    Raises:
        InputError: The row names a place outside the folder, or an impossible part of a tar.
    """
    name = row.get("tar") or row.get("staged") or row["file_name"]
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{output_dir}: the manifest names {name!r}, outside the folder")
    if "tar" not in row:
        return Place(output_dir / name)
    numbers = (row.get("offset"), row.get("size"))
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InputError(
            f"{output_dir}: the manifest gives {row['file_name']!r} offset and size {numbers}; "
            f"remove the manifest of {name}, and expand.py makes it again"
        )
    return Place(output_dir / name, numbers)


def png_checksum(encoded: bytes) -> str:
    """The checksum, 8 hex digits, of the last block of pixels in a PNG."""
    return encoded[-len(PNG_END) - CHECKSUM_BYTES : -len(PNG_END)].hex()


def holds_image(place: Place, checksum: str | None) -> bool:
    """Whether a place holds a complete PNG with this checksum.

    Args:
        place: File or part of a tar.
        checksum: What `png_checksum` gave when the image was made; None accepts any complete PNG,
            since older manifests have no checksum.
    """
    path, byte_range = place
    num_bytes = len(PNG_END) + CHECKSUM_BYTES
    try:
        with path.open("rb") as file:
            if byte_range is None:
                file.seek(-num_bytes, os.SEEK_END)
            else:
                file.seek(sum(byte_range) - num_bytes)
            end = file.read(num_bytes)
    except (OSError, ValueError, OverflowError):  # no file, or a part before or beyond it
        return False
    return end.endswith(PNG_END) and checksum in (None, png_checksum(end))


def generated_record(
    output_dir: Path, row: Mapping[str, Any], label: int, class_name: str
) -> ImageRecord:
    """A record of the image of a manifest row, whether the image exists or not.

    Args:
        output_dir: Folder of the expanded set.
        row: Manifest row.
        label: Label of the record; the row's own may be out of date.
        class_name: Class name of the record.
    """
    path, byte_range = image_place(output_dir, row)
    named = (path, row["file_name"], label, class_name, row["source"])
    return PackedRecord(*named, byte_range=byte_range) if byte_range else ImageRecord(*named)
