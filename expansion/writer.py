"""The expanded set on disk: image files, manifests, and what is still missing.

    <output>/<class folder>/<stem>_expand_<k>.png
    <output>/manifest.<split>-of-<total>.<process>.jsonl  one row per image, by one process
    <output>/metadata.jsonl   all rows, merged; read by imagefolder loaders
    <output>/expansion.yaml   what decides the images
    <output>/classes.json     label, name and folder of every class

An image counts only when its file is whole and its row stands in a manifest, in this order.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from expansion.config import JSON_ERRORS
from expansion.errors import InputError, brief, is_text
from expansion.image_datasets import ImageRecord
from expansion.naming import variant_name
from expansion.runs import write_atomic

logger = logging.getLogger(__name__)

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
MAX_PENDING = 256  # images waiting to be written before the sampler has to wait


class ExpansionWriter:
    """Writes images in background threads; used as a context manager, whose exit waits for them.

    Args:
        output_dir: Folder of the expanded set.
        split: Number of this shard; `total_split` the number of shards.
    """

    def __init__(self, output_dir: Path, split: int, total_split: int):
        self.output_dir = output_dir
        process = uuid.uuid4().hex[:8]
        self.manifest = output_dir / f"manifest.{split}-of-{total_split}.{process}.jsonl"
        self.pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="writer")
        self.pending: list[Future] = []
        self.lock = threading.Lock()

    def __enter__(self) -> ExpansionWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(wait=True)
        if exception[0] is None:
            self._collect(self.pending)

    def write(self, pixels: np.ndarray, row: Mapping[str, Any]) -> None:
        """Queue one image.

        Args:
            pixels: (H, W, 3) uint8.
            row: Its manifest row; `file_name` is the path below the output folder.

        Raises:
            OSError: An earlier image could not be written.
        """
        self.pending.append(self.pool.submit(self._write, pixels, dict(row)))
        if len(self.pending) > MAX_PENDING:
            self._collect(self.pending[: MAX_PENDING // 2])
            del self.pending[: MAX_PENDING // 2]

    def _write(self, pixels: np.ndarray, row: dict[str, Any]) -> None:
        path = self.output_dir / row["file_name"]
        path.parent.mkdir(exist_ok=True)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="PNG", pnginfo=_png_text(row))
        write_atomic(path, encoded.getvalue())
        with self.lock:
            append_line(self.manifest, json.dumps(row, ensure_ascii=False))

    @staticmethod
    def _collect(futures: Iterable[Future]) -> None:
        for future in futures:
            future.result()


def append_line(path: Path, line: str) -> None:
    """Append `line` to a file of this process alone; a failure leaves the file as it was."""
    content = f"{line}\n".encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise


def missing_items(
    output_dir: Path, items: Sequence[tuple[ImageRecord, int]], stems: Mapping[str, str]
) -> set[tuple[str, int]]:
    """(file_name of the real image, variant) of the items that are not yet done."""
    listed = {row["file_name"] for row in read_manifest(output_dir)}
    missing = set()
    for record, variant in items:
        name = variant_name(stems[record.file_name], variant)
        if name not in listed or not is_whole_png(output_dir / name):
            missing.add((record.file_name, variant))
    return missing


def read_manifest(output_dir: Path) -> list[dict[str, Any]]:
    """Rows of all manifests, one per image, sorted by file name; rows of one image agree.

    A last line cut off by a crash is ignored, as its image is then made again.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(output_dir.glob("manifest.*.jsonl")):
        if not path.is_file():
            raise InputError(f"{path} is no file; remove it")
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                row = _checked_row(json.loads(line))
                rows[row["file_name"]] = row
            except JSON_ERRORS as error:
                if number == len(lines):
                    continue
                raise InputError(
                    f"{path}, line {number}: no manifest row ({error}); remove the line, "
                    "and the image is made again by the next expand.py"
                ) from error
    return [rows[name] for name in sorted(rows)]


def _checked_row(row: Any) -> dict[str, Any]:
    """A manifest row that names an image below the folder, its class and its real image.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(row, dict):
        raise ValueError("no object")
    for key in ("file_name", "class", "source"):
        if not isinstance(row.get(key), str) or not is_text(row[key]):
            raise ValueError(f"{key} is {brief(row.get(key))}, not text")
    path = PurePosixPath(row["file_name"])
    # A backslash or a colon leads elsewhere on Windows, and `naming` writes neither.
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00]", row["file_name"]):
        raise ValueError(f"{brief(row['file_name'])} is outside the folder")
    if not isinstance(row.get("details", {}), dict):
        raise ValueError(f"details are {brief(row['details'])}, no object")
    return row


def merge_manifests(output_dir: Path) -> list[dict[str, Any]]:
    """Write `metadata.jsonl` from all manifests and return its rows."""
    rows = read_manifest(output_dir)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    # Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it.
    content = "".join(lines).encode("utf-8", "backslashreplace")
    write_atomic(output_dir / "metadata.jsonl", content)
    return rows


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
    records, absent = [], []
    for row in rows:
        if row["class"] not in labels:
            raise InputError(
                f"{output_dir}: the manifest names class {row['class']!r}, which the dataset "
                "lacks; give the expansion that was made from this dataset"
            )
        path = output_dir / row["file_name"]
        if not os.path.isfile(path):
            absent.append(row["file_name"])
            continue
        label = labels[row["class"]]
        records.append(ImageRecord(path, row["file_name"], label, row["class"], row["source"]))
    if absent:
        listed = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        message = f"{output_dir} lacks {len(absent)} images of its manifest: {listed}"
        if on_error == "fail":
            raise InputError(
                f"{message}; run the same expand.py command again to make them, or go on without "
                "them with --on_error skip"
            )
        logger.warning("skipped: %s", message)
    return records


def is_whole_png(path: Path) -> bool:
    """Whether the file ends as a PNG must; a truncated one does not."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


def _png_text(row: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("synthetic", "true")
    for key in ("method", "source", "seed", "prompt", "model"):
        info.add_itxt(key, str(row[key]))
    return info
