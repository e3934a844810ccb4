"""Decoded images, kept for all passes and all loading processes.

Reading, decoding and resizing an image costs many times what its augmentation does, and gives the
same pixels in every pass. A cache keeps them as bytes, in memory that worker processes share or in
a file without a name. Whoever needs an image first fills its place. Nothing is given up for another
image: shuffled passes need all equally often, so what does not fit is decoded anew. Imports no
torch.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

GB = 10**9
DEFAULT_SHARE = 0.5  # of what is free, where no size is asked for
LARGEST_SHARE = 0.9  # where one is
CGROUP = Path("/sys/fs/cgroup")


class PixelCache:
    """Square images of one size, filled at first use.

    Args:
        side: Of the images, pixels.
        fit: Makes an RGB image of `side` x `side` pixels from a decoded one; draws nothing.
        kinds: Where images may go, in this order: "memory", "disk".
        max_bytes: Of all images on this machine; by default half of what is free. Processes of one
            training (LOCAL_WORLD_SIZE) share it out.
    """

    def __init__(
        self,
        side: int,
        fit: Callable[[Image.Image], Image.Image],
        kinds: Sequence[str] = ("memory",),
        max_bytes: int | None = None,
    ):
        self.side, self.fit, self.kinds, self.max_bytes = side, fit, tuple(kinds), max_bytes
        self.places: dict[tuple, Place] = {}
        self.room: dict[str, int] = {}  # bytes left of each kind, once asked for
        self.reserved = 0

    def reserve(self, records: Sequence[ImageRecord]) -> list[Place | None]:
        """A place for every image, the one it has already if its file is still the same.

        To be called before worker processes start. None for images that do not fit.
        """
        keys = [_identity(record) for record in records]
        new = list(dict.fromkeys(key for key in keys if key and key not in self.places))
        for kind in self.kinds:
            count = min(len(new), self._room(kind) // Block.image_bytes(self.side))
            block = _make_block(count, self.side, kind) if count else None
            if block is not None:
                self.places |= {key: Place(block, row) for row, key in enumerate(new[:count])}
                self.room[kind] -= block.num_bytes
                self.reserved += block.num_bytes
                new = new[count:]
        if new and self.kinds:
            logger.info(
                "%d of %d images do not fit into the image cache and are decoded in every pass",
                len(new),
                len(set(keys)),
            )
        return [self.places.get(key) for key in keys]

    def load(self, record: ImageRecord, place: Place | None) -> Image.Image:
        """The image, `side` x `side`; raises InputError when it cannot be read.

        Args:
            place: What `reserve` gave for it.
        """
        if place is None:
            return self.fit(record.load())
        if not place.filled:
            image = self.fit(record.load())
            place.fill(np.asarray(image))
            return image
        shape = (self.side, self.side)
        return Image.frombuffer("RGB", shape, place.pixels, "raw", "RGB", 0, 1)

    def _room(self, kind: str) -> int:
        if kind not in self.room:
            free = free_memory() if kind == "memory" else _free_disk()
            share = DEFAULT_SHARE if self.max_bytes is None else LARGEST_SHARE
            self.room[kind] = int(share * free) // _processes()
        if self.max_bytes is None:
            return self.room[kind]
        return max(0, min(self.room[kind], self.max_bytes // _processes() - self.reserved))


class Block:
    """Shared bytes of `count` images: `filled` (count,), `pixels` (count, side, side, 3); uint8.

    Pickled while a worker process starts, it becomes the same bytes there.

    Args:
        handle: File descriptor, which the block closes in the end.
    """

    def __init__(self, count: int, side: int, handle: int):
        self.count, self.side, self.handle = count, side, handle
        self.num_bytes = count * self.image_bytes(side)
        shared = mmap.mmap(handle, self.num_bytes)
        self.filled = np.frombuffer(shared, np.uint8, count)
        self.pixels = np.frombuffer(shared, np.uint8, offset=count)
        self.pixels = self.pixels.reshape(count, side, side, 3)
        weakref.finalize(self, os.close, handle)

    @staticmethod
    def image_bytes(side: int) -> int:
        return 3 * side * side + 1

    def __reduce__(self):
        return _rebuild_block, (self.count, self.side, DupFd(self.handle))


def _rebuild_block(count: int, side: int, handle: DupFd) -> Block:
    return Block(count, side, handle.detach())


class Place:
    """One image of a block; may be empty yet."""

    __slots__ = ("block", "row")

    def __init__(self, block: Block, row: int):
        self.block, self.row = block, row

    @property
    def filled(self) -> bool:
        return bool(self.block.filled[self.row])

    @property
    def pixels(self) -> np.ndarray:
        """(side, side, 3), uint8."""
        return self.block.pixels[self.row]

    def fill(self, pixels: np.ndarray) -> None:
        """Two processes may do it at once: they write the same."""
        self.block.pixels[self.row] = pixels
        self.block.filled[self.row] = 1  # last, so that no process reads half an image


def _identity(record: ImageRecord) -> tuple | None:
    """What decides the pixels of an image; None for a file that is not there."""
    try:
        status = os.stat(record.path)
    except OSError:
        return None
    place = (str(record.path), record.part, record.crop_bottom, record.reading)
    return (*place, status.st_mtime_ns, status.st_size)


def _make_block(count: int, side: int, kind: str) -> Block | None:
    """None, with a warning, where the system refuses."""
    num_bytes = count * Block.image_bytes(side)
    try:
        with _open_nameless(kind) as file:
            file.truncate(num_bytes)
            if kind == "disk" and hasattr(os, "posix_fallocate"):
                # Now, as a disk that is full later would kill the process.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            return Block(count, side, os.dup(file.fileno()))
    except (OSError, ValueError) as error:
        logger.warning("no image cache of %.1f GB (%s): %s", num_bytes / GB, kind, error)
        return None


def _open_nameless(kind: str) -> BinaryIO:
    """A file that vanishes with the last process that has it; in memory where the system can."""
    if kind == "memory" and hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("images"), "r+b")
    return tempfile.TemporaryFile(dir=_disk_folder())


def _disk_folder() -> str:
    """TMPDIR, else /var/tmp, which unlike /tmp is never memory."""
    given = os.environ.get("TMPDIR")
    return given or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())


def _free_disk() -> int:
    status = os.statvfs(_disk_folder())
    return status.f_bavail * status.f_frsize


def free_memory() -> int:
    """Bytes that this process and its workers may still take, by machine and by container."""
    try:
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        counts = dict(row.split() for row in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return max(0, free)


def _processes() -> int:
    """Training processes on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
