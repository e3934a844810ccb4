"""Writes images as files in background threads; a file is complete or does not exist.

    <output>/<class folder>/<stem>_expand_<k>.png
    <output>/manifest.*.jsonl notes of every process, see `manifest.py`
    <output>/metadata.jsonl   rows of all images; read by imagefolder loaders
    <output>/expansion.yaml   everything that decides the images
    <output>/classes.json     label, name and folder of every class

An image is complete when its file is whole and its row is in a manifest; the row is written last.
If tars are asked for, `tars.py` packs the files when the set is complete.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from expansion.common.files import write_atomic
from expansion.common.phases import phase
from expansion.images.variants import Variant
from expansion.store.manifest import MadeWith, ProcessManifest, manifest_row
from expansion.store.places import png_checksum

logger = logging.getLogger(__name__)

MAX_PENDING = 256  # number of waiting images at which the sampler has to wait too


class ExpansionWriter:
    """Writes images in background threads; a context manager, whose exit waits for the threads.

    Args:
        output_dir: Folder of the expanded set.
        made_with: What all images of the run are made with.
        split: Number of this shard.
        total_split: Number of shards.
    """

    def __init__(self, output_dir: Path, made_with: MadeWith, split: int = 0, total_split: int = 1):
        self.output_dir = output_dir
        self.made_with = made_with
        self.manifest = ProcessManifest(output_dir, split, total_split)
        self.pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="writer")
        self.pending: deque[Future] = deque()
        self.last_unit = time.monotonic()

    def __enter__(self) -> ExpansionWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        # After a second signal, images that wait are not written any more.
        at_once = isinstance(exception[1], KeyboardInterrupt)
        self.pool.shutdown(wait=True, cancel_futures=at_once)
        try:
            if exception[0] is None:
                self.drain()
        finally:
            if self.manifest.path.exists():
                with contextlib.suppress(OSError):  # an error of an image matters more
                    self.manifest.note("end")

    def write(self, pixels: np.ndarray, variant: Variant, details: Mapping[str, float]) -> None:
        """Queue an image for writing.

        Args:
            pixels: (H, W, 3) uint8.
            variant: Which image it is.
            details: Figures of the method about it, by name.

        Raises:
            OSError: An earlier image could not be written.
        """
        row = manifest_row(variant, self.made_with, details)
        while self.pending and self.pending[0].done():  # a full disk shows here, not hours later
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(self._write, pixels, row))
        if len(self.pending) > MAX_PENDING:
            with phase("idle"):
                self.drain(MAX_PENDING // 2)

    def drain(self, num_left: int = 0) -> None:
        """Wait until at most `num_left` images are waiting; raises OSError as `write` does."""
        while len(self.pending) > num_left:
            self.pending.popleft().result()

    def record_failure(self, variant: Variant, reason: str) -> None:
        """Note and log that an image could not be made, and why."""
        source, number = variant.key
        logger.error("%s, not written: %s variant %d", reason, source, number)
        self.manifest.note("failed", source=source, variant=number, reason=reason)

    def note_unit(self, num_images: int) -> None:
        """Note that a unit with so many images is done, and how long it took."""
        now = time.monotonic()
        self.manifest.note("unit", images=num_images, seconds=round(now - self.last_unit, 4))
        self.last_unit = now

    def _write(self, pixels: np.ndarray, row: dict[str, Any]) -> None:
        with phase("write"):
            encoded = encode_png(pixels, row)
            row["png_crc32"] = png_checksum(encoded)
            write_below(self.output_dir / row["file_name"], encoded)
            self.manifest.append(row)


def write_below(path: Path, content: bytes, attempts: int = 5) -> None:
    """Write a file in a folder that another process may be removing because it is empty.

    Args:
        path: The file.
        content: What it holds.
        attempts: How often to try.
    """
    for remaining in reversed(range(attempts)):
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content)
            return
        except FileNotFoundError:
            if not remaining:
                raise


def encode_png(pixels: np.ndarray, row: Mapping[str, Any]) -> bytes:
    """Encode an image as a PNG whose text fields say what it is.

    Args:
        pixels: (H, W, 3) uint8.
        row: Manifest row of the image, for the text fields.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text("synthetic", "true")
    for key in ("method", "source", "seed", "prompt", "model"):
        info.add_itxt(key, str(row[key]))
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", pnginfo=info)
    return encoded.getvalue()
