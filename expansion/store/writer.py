"""Images become files: encoded in background threads, whole or absent.

    <output>/<class folder>/<stem>_expand_<k>.png
    <output>/manifest.*.jsonl see `manifest.py`
    <output>/metadata.jsonl   all rows, merged; read by imagefolder loaders
    <output>/expansion.yaml   what decides the images
    <output>/classes.json     label, name and folder of every class

An image counts only when its file is whole and its row stands in a manifest, in this order.
`tars.py` packs images into tars instead, where that is asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from expansion.common.files import write_atomic
from expansion.common.phases import phase
from expansion.store.expanded_set import Pair
from expansion.store.manifest import ProcessManifest
from expansion.store.places import png_checksum

logger = logging.getLogger(__name__)

MAX_PENDING = 256  # images waiting to be written before the sampler has to wait


class ExpansionWriter:
    """Writes images in background threads; used as a context manager, whose exit waits for them.

    Args:
        output_dir: Folder of the expanded set.
        split: Number of this shard, or None for a process that helps all of them.
        total_split: Number of shards.
        staging: (file_name, variant) -> the folder below `output_dir` in which an image waits for
            its tar; None where images stay files.
    """

    def __init__(
        self,
        output_dir: Path,
        split: int | None,
        total_split: int,
        staging: Callable[[Pair], str] | None = None,
    ):
        self.output_dir = output_dir
        self.staging = staging
        self.manifest = ProcessManifest(output_dir, split, total_split)
        self.pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="writer")
        self.pending: deque[Future] = deque()
        self.failures: set[Pair] = set()
        self.last_unit = time.monotonic()

    def __enter__(self) -> ExpansionWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        at_once = isinstance(exception[1], KeyboardInterrupt)  # a second signal: leave the queue
        self.pool.shutdown(wait=True, cancel_futures=at_once)
        try:
            if exception[0] is None:
                self.drain()
        finally:
            if self.manifest.path.exists():
                with contextlib.suppress(OSError):  # the image's error is worth more
                    self.manifest.note("end")

    def write(self, pixels: np.ndarray, row: Mapping[str, Any]) -> None:
        """Queue one image.

        Args:
            pixels: (H, W, 3) uint8.
            row: Its manifest row; `file_name` is the path below the output folder.

        Raises:
            OSError: An earlier image could not be written.
        """
        while self.pending and self.pending[0].done():  # a full disk shows here, not hours later
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(self._write, pixels, dict(row)))
        if len(self.pending) > MAX_PENDING:
            with phase("idle"):
                self.drain(MAX_PENDING // 2)

    def drain(self, num_left: int = 0) -> None:
        """Wait until at most `num_left` images are not on disk; raises OSError as `write` does."""
        while len(self.pending) > num_left:
            self.pending.popleft().result()

    def record_failure(self, file_name: str, variant: int, reason: str) -> None:
        """Say that a variant of the real image `file_name` could not be made."""
        self.failures.add((file_name, variant))
        logger.error("%s, not written: %s variant %d", reason, file_name, variant)
        self.manifest.note("failed", source=file_name, variant=variant, reason=reason)

    def note_unit(self, num_images: int) -> None:
        """Say that a unit of work is computed, and how long it took."""
        now = time.monotonic()
        self.manifest.note("unit", images=num_images, seconds=round(now - self.last_unit, 4))
        self.last_unit = now

    def _write(self, pixels: np.ndarray, row: dict[str, Any]) -> None:
        with phase("write"):
            encoded = encode_png(pixels, row)
            row["png_crc32"] = png_checksum(encoded)
            if self.staging:
                folder = self.staging((row["source"], row["variant"]))
                row["staged"] = f"{folder}/{row['file_name']}"
                write_staged(self.output_dir / row["staged"], encoded)
            else:
                path = self.output_dir / row["file_name"]
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, encoded)
            self.manifest.append(row)


def write_staged(path: Path, content: bytes, attempts: int = 5) -> None:
    """Write a file that waits to be packed.

    A process that made the same image may have packed it, and may now be removing the folder.
    """
    for remaining in reversed(range(attempts)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
            return
        except FileNotFoundError:
            if not remaining:
                raise


def encode_png(pixels: np.ndarray, row: Mapping[str, Any]) -> bytes:
    """(H, W, 3) uint8 as a PNG whose text fields say what it is."""
    info = PngImagePlugin.PngInfo()
    info.add_text("synthetic", "true")
    for key in ("method", "source", "seed", "prompt", "model"):
        info.add_itxt(key, str(row[key]))
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", pnginfo=info)
    return encoded.getvalue()
