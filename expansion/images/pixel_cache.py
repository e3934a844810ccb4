"""Decoded images, kept in memory for all passes and all loading processes.

Reading, decoding and resizing an image costs many times what its augmentation does, and gives the
same pixels in every pass. A cache keeps them as bytes in memory that worker processes share;
whoever needs an image first fills its place. It may take half of the memory that is free when it is
first used, shared out among the processes of a training on this machine. What does not fit is
decoded anew: nothing is given up for another image, as shuffled passes need all equally often.
Imports no torch.
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
from typing import Any

import numpy as np
from PIL import Image

from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")


class PixelCache:
    """Square images of one size, filled at first use.

    Args:
        side: Of the images, pixels.
        fit: Makes an RGB image of `side` x `side` pixels from a decoded one; draws nothing.
    """

    def __init__(self, side: int, fit: Callable[[Image.Image], Image.Image]):
        self.side, self.fit = side, fit
        self.shared: SharedImages | None = None  # from the first use on, if there is memory
        self.places: dict[tuple, int] = {}  # those that are taken

    def reserve(self, records: Sequence[ImageRecord]) -> list[int | None]:
        """A place for every image, the one it has already if its file is still the same.

        To be called before worker processes start. None for images that do not fit.
        """
        self.shared = self.shared or _shared_images(self.side)
        room = self.shared.count if self.shared else 0
        keys = [_identity(record) for record in records]
        for key in keys:
            if key is not None and len(self.places) < room:
                self.places.setdefault(key, len(self.places))
        found = [self.places.get(key) for key in keys]
        if None in found:
            logger.info(
                "%d of %d images do not fit into memory and are decoded in every pass",
                found.count(None),
                len(found),
            )
        return found

    def holds(self, place: int | None) -> bool:
        """Whether the image of a place that `reserve` gave is there."""
        return place is not None and bool(self.shared.filled[place])

    def load(self, record: ImageRecord, place: int | None) -> Image.Image:
        """The image, `side` x `side`; raises InputError when it cannot be read.

        Args:
            record: Where to read it, unless that was done before.
            place: What `reserve` gave for it.
        """
        if self.holds(place):
            pixels = self.shared.pixels[place]
            return Image.frombuffer("RGB", (self.side, self.side), pixels, "raw", "RGB", 0, 1)
        image = self.fit(record.load())
        if place is not None:
            # Two processes may do it at once: they write the same.
            self.shared.pixels[place] = np.asarray(image)
            self.shared.filled[place] = 1  # last, so that no process reads half an image
        return image


class SharedImages:
    """Memory for `count` images: `filled` (count,), `pixels` (count, side, side, 3); uint8.

    What is not filled takes none. Pickled while a worker process starts, it is the same there.

    Args:
        count: Number of images.
        side: Of the images, pixels.
        handle: File descriptor of the memory, which is closed in the end.
    """

    def __init__(self, count: int, side: int, handle: int):
        self.count, self.side, self.handle = count, side, handle
        weakref.finalize(self, os.close, handle)
        os.truncate(handle, count * image_bytes(side))
        shared = mmap.mmap(handle, count * image_bytes(side))
        self.filled = np.frombuffer(shared, np.uint8, count)
        self.pixels = np.frombuffer(shared, np.uint8, offset=count).reshape(count, side, side, 3)

    def __reduce__(self):
        return _received, (self.count, self.side, DupFd(self.handle))


def _received(count: int, side: int, handle: Any) -> SharedImages:
    return SharedImages(count, side, handle.detach())


def _shared_images(side: int) -> SharedImages | None:
    """Places for as many images as may be kept; None, with a warning, if the system refuses."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    count = free_memory() // 2 // processes // image_bytes(side)
    try:
        if hasattr(os, "memfd_create"):
            return SharedImages(count, side, os.memfd_create("images"))
        with tempfile.TemporaryFile() as file:
            return SharedImages(count, side, os.dup(file.fileno()))
    except (OSError, ValueError) as error:
        logger.warning("no memory for decoded images: %s", error)
        return None


def image_bytes(side: int) -> int:
    """What one image takes: its pixels, and whether they are there."""
    return 3 * side * side + 1


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


def _identity(record: ImageRecord) -> tuple | None:
    """What decides the pixels of an image; None for a file that is not there."""
    try:
        status = os.stat(record.path)
    except OSError:
        return None
    place = (str(record.path), record.part, record.crop_bottom, record.reading)
    return (*place, status.st_mtime_ns, status.st_size)
