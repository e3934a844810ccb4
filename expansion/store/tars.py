"""Tar shards of an expanded set, as the webdataset library reads them.

    <output>/<exp>-00000.tar              images_per_tar images: key.png, key.cls, key.json each
    <output>/manifest.<exp>-00000.jsonl   their rows, with tar, offset and size of each PNG, bytes

A tar holds a fixed sequence of the set's images, without times or owners. So its bytes depend
neither on which process made an image nor on crashes. Images are made as files; when the set is
complete, they are packed tar by tar, and the files are removed. If packing is interrupted, the same
command completes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expansion.common.files import partial_path, write_atomic
from expansion.images.variants import Variant
from expansion.store.expanded_set import StoredImage, StoredSet
from expansion.store.places import Place

OLDER_STAGING = ".staged"  # folder in which older versions kept images before packing
PLACE_KEYS = ("staged", "tar", "offset", "size")  # keys of a row that tell the image's place


@dataclass(frozen=True)
class TarLayout:
    """Which image belongs in which tar.

    Attributes:
        prefix: Beginning of the tars' names.
        variants: All images of the set, in order.
        images_per_tar: Number of images in each tar; the last one may hold fewer.
    """

    prefix: str
    variants: Sequence[Variant]
    images_per_tar: int

    @property
    def num_tars(self) -> int:
        """Number of tars, of which none is empty."""
        return -(-len(self.variants) // self.images_per_tar)

    @property
    def pattern(self) -> str:
        """The names of all tars in the brace notation of the webdataset library."""
        return f"{self.prefix}-{{{self._digits(0)}..{self._digits(self.num_tars - 1)}}}.tar"

    def name(self, number: int) -> str:
        """File name of a tar, by its number from 0."""
        return f"{self.prefix}-{self._digits(number)}.tar"

    def manifest_name(self, number: int) -> str:
        """File name of a tar's manifest."""
        return f"manifest.{self.name(number).removesuffix('.tar')}.jsonl"

    def members(self, number: int) -> Sequence[Variant]:
        """The images of a tar."""
        return self.variants[number * self.images_per_tar : (number + 1) * self.images_per_tar]

    def _digits(self, number: int) -> str:
        return f"{number:0{max(5, len(str(self.num_tars - 1)))}d}"


def tar_prefix(exp: str) -> str:
    """`exp` without characters that have a meaning in shells, URLs or the brace notation."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", exp).strip("-") or "expanded"


def is_packed(stored: StoredSet, layout: TarLayout) -> bool:
    """Whether all images of a complete set are in tars, so that no folder of files is left."""
    folders = {variant.file_name.split("/")[0] for variant in layout.variants} | {OLDER_STAGING}
    return not any((stored.output_dir / folder).is_dir() for folder in folders)


def pack(stored: StoredSet, layout: TarLayout) -> None:
    """Make all tars of a complete set, except those that exist and are whole.

    Images that could not be made are left out. The files of packed images are removed.

    Args:
        stored: The images on disk; it is refreshed if another process packs at the same time.
        layout: Which image belongs in which tar.
    """
    for number in range(layout.num_tars):
        try:
            _pack(stored, layout, number)
        except FileNotFoundError:  # another process has packed it, and removed what was read here
            stored.refresh()
            _pack(stored, layout, number)
        for variant in layout.members(number):
            path = stored.output_dir / variant.file_name
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # unless its class has other images
                path.parent.rmdir()
    shutil.rmtree(stored.output_dir / OLDER_STAGING, ignore_errors=True)
    stored.refresh()


def _pack(stored: StoredSet, layout: TarLayout, number: int) -> None:
    """Write a tar, then its manifest; raises FileNotFoundError if an image is gone."""
    # The images of the tar, and whether they are in it already.
    folder, name = stored.output_dir, layout.name(number)
    stored_images = {variant: stored.find(variant) for variant in layout.members(number)}
    gone = [v for v, image in stored_images.items() if image is None and v.key not in stored.failed]
    if gone:
        raise FileNotFoundError(gone[0].file_name)
    images = {v: image for v, image in stored_images.items() if image is not None}
    if all(image.place.path == folder / name for image in images.values()):
        return
    # The tar is written under another name, and takes its own only when it is safely on disk.
    rows = []
    partial = partial_path(folder / name)
    try:
        with partial.open("wb") as file:
            for i, variant in enumerate(layout.members(number), number * layout.images_per_tar):
                if variant not in images:
                    continue
                row, png = _content(images[variant], variant)
                offset = file.tell() + tarfile.BLOCKSIZE
                file.write(sample(f"{i:08d}", png, row))
                rows.append({**row, "tar": name, "offset": offset, "size": len(png)})
            file.write(2 * tarfile.NUL * tarfile.BLOCKSIZE)
            file.flush()
            os.fsync(file.fileno())  # before the only other copy of the images goes
        partial.replace(folder / name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    manifest = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / layout.manifest_name(number), manifest)


def _content(image: StoredImage, variant: Variant) -> tuple[dict[str, Any], bytes]:
    """The row of an image, without the keys of its place, and the bytes of the image."""
    row = {key: value for key, value in image.row.items() if key not in PLACE_KEYS}
    row["label"] = variant.source.label
    return row, _read(image.place)


def sample(key: str, png: bytes, row: Mapping[str, Any]) -> bytes:
    """The bytes of three members of a tar: the image, its label and its manifest row.

    Args:
        key: Name of the members, without suffix.
        png: The encoded image.
        row: Its manifest row.
    """
    members = {
        "png": png,
        "cls": str(row["label"]).encode(),
        "json": json.dumps(row, ensure_ascii=False).encode(),
    }
    parts = []
    for suffix, content in members.items():
        header = tarfile.TarInfo(f"{key}.{suffix}")  # no time, owner 0, mode 644
        header.size = len(content)
        padding = -len(content) % tarfile.BLOCKSIZE
        parts += [header.tobuf(tarfile.USTAR_FORMAT), content, tarfile.NUL * padding]
    return b"".join(parts)


def _read(place: Place) -> bytes:
    first, num_bytes = place.byte_range or (0, -1)
    with place.path.open("rb") as file:
        file.seek(first)
        return file.read(num_bytes)
