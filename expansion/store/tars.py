"""Tar shards of an expanded set, as the webdataset library reads them.

    <output>/<exp>-00000.tar              images_per_tar images: key.png, key.cls, key.json each
    <output>/manifest.<exp>-00000.jsonl   their rows, with tar, offset and size of each PNG, bytes
    <output>/.staged/00000/               images of a tar that is not complete yet

A tar holds a fixed run of the set's images, in order, without times or owners: its bytes do not
depend on who made which image, nor on crashes. Images are made one by one, by any process, as
hidden files; whoever sees that a tar's last image is there packs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from expansion.common.files import partial_path, write_atomic
from expansion.store.expanded_set import Item, Pair, StoredSet
from expansion.store.manifest import Line
from expansion.store.places import Place

STAGING = ".staged"
PLACE_KEYS = ("staged", "tar", "offset", "size")  # of a manifest row, not of an image


@dataclass(frozen=True)
class TarLayout:
    """Which image lies in which tar.

    Attributes:
        prefix: Beginning of the tars' names.
        items: All images of the set, in order.
        images_per_tar: Images of each tar; the last may hold fewer.
    """

    prefix: str
    items: Sequence[Item]
    images_per_tar: int

    @property
    def num_tars(self) -> int:
        """At least one image is in each."""
        return -(-len(self.items) // self.images_per_tar)

    @property
    def pattern(self) -> str:
        """All tars in the brace notation of the webdataset library."""
        return f"{self.prefix}-{{{self._digits(0)}..{self._digits(self.num_tars - 1)}}}.tar"

    def name(self, number: int) -> str:
        """File name of a tar."""
        return f"{self.prefix}-{self._digits(number)}.tar"

    def manifest_name(self, number: int) -> str:
        """File name of a tar's manifest."""
        return f"manifest.{self.name(number).removesuffix('.tar')}.jsonl"

    def staging(self, number: int) -> str:
        """Folder, below the output folder, of the tar's images until it is packed."""
        return f"{STAGING}/{self._digits(number)}"

    def staging_of(self, pair: Pair) -> str:
        """The same, of an image: (file_name of the real image, variant)."""
        return self.staging(self.number_of[pair])

    def members(self, number: int) -> Sequence[Item]:
        """The images of a tar."""
        return self.items[number * self.images_per_tar : (number + 1) * self.images_per_tar]

    @cached_property
    def number_of(self) -> dict[Pair, int]:
        """(file_name of the real image, variant) -> the tar's number."""
        return {_pair(item): i // self.images_per_tar for i, item in enumerate(self.items)}

    def _digits(self, number: int) -> str:
        return f"{number:0{max(5, len(str(self.num_tars - 1)))}d}"


def tar_prefix(exp: str) -> str:
    """`exp` without what means something in shells, URLs or the brace notation."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", exp).strip("-") or "expanded"


def pack_complete(
    stored: StoredSet, layout: TarLayout, numbers: Iterable[int], absent: Collection[Pair] = ()
) -> None:
    """Pack those of the tars whose images are all there.

    Args:
        stored: Must be fresh.
        absent: Images that could not be made, (file_name, variant); a tar does without them.
    """
    for number in numbers:
        staging = stored.output_dir / layout.staging(number)
        if not staging.is_dir():  # packed already, or not begun
            continue
        needed = [item for item in layout.members(number) if _pair(item) not in absent]
        # The list in memory first: looking at every file at each unit would cost more.
        if not all(stored.lists(item) for item in needed) or stored.missing(needed):
            continue
        try:
            _pack(stored, layout, number, absent)
        except FileNotFoundError:  # another process has packed it, and removed what was read here
            stored.refresh()
            _pack(stored, layout, number, absent)
        shutil.rmtree(staging, ignore_errors=True)
    with contextlib.suppress(OSError):  # more tars are not packed yet
        (stored.output_dir / STAGING).rmdir()


class RecentTars:
    """Packs tars during the work: called with each unit that is begun."""

    def __init__(self, stored: StoredSet, layout: TarLayout):
        self.stored = stored
        self.layout = layout
        self.numbers: deque[int] = deque(maxlen=8)  # of the last units' images

    def __call__(self, unit: Sequence[Item]) -> None:
        pack_complete(self.stored, self.layout, list(self.numbers))
        found = {self.layout.number_of[_pair(item)] for item in unit}
        self.numbers.extend(found - set(self.numbers))


def _pack(stored: StoredSet, layout: TarLayout, number: int, absent: Collection[Pair]) -> None:
    """Write a tar, then its manifest; raises FileNotFoundError if an image has gone."""
    folder, name = stored.output_dir, layout.name(number)
    places = {item: stored.place(item) for item in layout.members(number)}
    if all(place and place[0] == folder / name for place in places.values()):
        return  # some images were made twice, and the tar was packed before
    gone = [item for item, place in places.items() if not place and _pair(item) not in absent]
    if gone:
        raise FileNotFoundError(stored.name(gone[0]))
    manifest = folder / layout.manifest_name(number)
    rows_before = {(row["source"], row["variant"]): row for row in _rows_of(manifest)}
    rows = []
    partial = partial_path(folder / name)
    try:
        with partial.open("wb") as file:
            for i, (item, place) in enumerate(places.items(), number * layout.images_per_tar):
                if place is None:
                    continue
                row = stored.staged.get(_pair(item)) or rows_before[_pair(item)]
                row = {key: value for key, value in row.items() if key not in PLACE_KEYS}
                row["label"] = item[0].label
                png = _read(place)
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
    write_atomic(manifest, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _pair(item: Item) -> Pair:
    return item[0].file_name, item[1]


def sample(key: str, png: bytes, row: Mapping[str, Any]) -> bytes:
    """Three members of a tar: the image, its label and its manifest row."""
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
    path, byte_range = place
    first, num_bytes = byte_range or (0, -1)
    with path.open("rb") as file:
        file.seek(first)
        return file.read(num_bytes)


def _rows_of(manifest: Path) -> list[dict[str, Any]]:
    """Rows of one manifest; none where it is absent."""
    if not manifest.is_file():
        return []
    lines = manifest.read_bytes().split(b"\n")
    return [Line(manifest, i, text).row() for i, text in enumerate(lines, start=1) if text.strip()]
