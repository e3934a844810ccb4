"""Manifests: what every process wrote, one JSON line per image, and what happened to it.

    <output>/manifest.<split>-of-<total>.<process>.jsonl   of a shard's process
    <output>/manifest.joined.<process>.jsonl               of a process that helps all shards
    <output>/manifest.<tar>.jsonl                          of a finished tar

Lines with the key "event" (start, unit, failed, ...) are for `--status` only. No work depends on
their times; they never reach `metadata.jsonl`, which is the same however the work was shared.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, NamedTuple

from expansion.common.errors import JSON_ERRORS, InputError, brief, is_text
from expansion.common.files import write_atomic
from expansion.store.places import holds_image, image_place

Row = dict[str, Any]
RowsByName = dict[str, dict[str | None, Row]]  # file name -> checksum of the image -> its last row
SelectRows = Callable[[list[Row]], list[Row]]

EVENT_START = b'{"event"'


class ProcessManifest:
    """The manifest of one process; threads may append together.

    Args:
        output_dir: Folder of the expanded set.
        split: Number of the shard, or None for a process that helps all of them.
        total_split: Number of shards.
    """

    def __init__(self, output_dir: Path, split: int | None, total_split: int):
        self.process = uuid.uuid4().hex[:8]
        whose = "joined" if split is None else f"{split}-of-{total_split}"
        self.path = output_dir / f"manifest.{whose}.{self.process}.jsonl"
        self.lock = threading.Lock()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; raises OSError, and leaves the file as it was, when the disk is full."""
        with self.lock:
            append_line(self.path, json.dumps(row, ensure_ascii=False))

    def note(self, event: str, **facts: Any) -> None:
        """Add an event with the wall-clock time (seconds), which is for display only."""
        self.append({"event": event, **facts, "time": round(time.time(), 3)})


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


class Line(NamedTuple):
    """A line of a manifest; `number` counts from 1."""

    path: Path
    number: int
    text: bytes

    @property
    def is_event(self) -> bool:
        return self.text.startswith(EVENT_START)

    def row(self) -> dict[str, Any]:
        """The row of an image. Raises InputError, naming file and line, where it is none."""
        try:
            return _checked_row(json.loads(self.text.decode("utf-8", "replace")))
        except JSON_ERRORS as error:
            raise InputError(
                f"{self.path}, line {self.number}: no manifest row ({error}); remove the line, "
                "and the image is made again by the next expand.py"
            ) from error


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
    if type(row.get("variant")) is not int or row["variant"] < 0:
        raise ValueError(f"variant is {brief(row.get('variant'))}, no number from 0")
    if not isinstance(row.get("details", {}), dict):
        raise ValueError(f"details are {brief(row['details'])}, no object")
    return row


class ManifestReader:
    """Reads the manifests of a folder as they grow: each line once, when it is whole.

    A last line that a crash cut off never becomes whole; its image is made again.
    """

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        # path -> (inode, bytes read, lines read); another inode is a manifest that was replaced.
        self.places: dict[Path, tuple[int, int, int]] = {}

    def new_lines(self, growing_only: bool = False) -> Iterator[Line]:
        """Lines that were not returned before, in the order of their manifests' names.

        Args:
            growing_only: Do not look again at manifests of tars, of which there may be thousands:
                they are written once, or replaced after damage.
        """
        for path in manifest_paths(self.output_dir):
            if growing_only and path in self.places and not is_of_process(path):
                continue
            try:
                state = path.stat()
            except FileNotFoundError:  # removed since it was listed
                continue
            inode, done, number = self.places.get(path, (state.st_ino, 0, 0))
            if not S_ISREG(state.st_mode):
                raise InputError(f"{path} is no file; remove it")
            if inode != state.st_ino:
                done = number = 0
            if state.st_size <= done:
                continue
            with path.open("rb") as file:
                file.seek(done)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            lines = whole.split(b"\n")[:-1]
            self.places[path] = (state.st_ino, done + len(whole), number + len(lines))
            for i, text in enumerate(lines, start=number + 1):
                if text.strip():
                    yield Line(path, i, text)


def manifest_paths(output_dir: Path) -> list[Path]:
    """The manifests of a folder, sorted by name; none where there is no folder."""
    try:
        names = os.listdir(output_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [n for n in names if n.startswith("manifest.") and n.endswith(".jsonl")]
    return [output_dir / name for name in sorted(found)]


def is_of_process(path: Path) -> bool:
    """Whether a manifest is of a process, rather than of a tar."""
    return path.name.count(".") == 3


def read_manifest(output_dir: Path) -> list[dict[str, Any]]:
    """Rows of all manifests, one per image, sorted by file name."""
    by_name: RowsByName = {}
    _read_rows(ManifestReader(output_dir), by_name)
    return _sorted_rows(output_dir, by_name)


def merge_manifests(output_dir: Path, select: SelectRows = lambda rows: rows) -> list[Row]:
    """Write `metadata.jsonl` from all manifests and return its rows.

    Several processes may end together. One that ended while this one wrote may have written
    before it, with rows that this one lacks; then all is written again.

    Args:
        select: From all rows to those that are to stand in `metadata.jsonl`.
    """
    reader = ManifestReader(output_dir)
    by_name: RowsByName = {}
    _read_rows(reader, by_name)
    while True:
        rows = select(_sorted_rows(output_dir, by_name))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        # Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it.
        content = "".join(lines).encode("utf-8", "backslashreplace")
        write_atomic(output_dir / "metadata.jsonl", content)
        if not _read_rows(reader, by_name):
            return select(_sorted_rows(output_dir, by_name))


def _read_rows(reader: ManifestReader, by_name: RowsByName) -> int:
    """Put new rows into `by_name`; returns how many processes say in new lines that they ended."""
    num_ended = 0
    for line in reader.new_lines():
        if line.is_event:
            num_ended += line.text.startswith(b'{"event": "end"')
            continue
        row = line.row()
        claims = by_name.setdefault(row["file_name"], {})
        checksum = row.get("png_crc32")
        # The row that names the image's tar replaces that of its making, never the reverse.
        if "tar" in row or "tar" not in claims.get(checksum, {}):
            claims.pop(checksum, None)
            claims[checksum] = row
    return num_ended


def _sorted_rows(output_dir: Path, by_name: RowsByName) -> list[Row]:
    """One row of each file: of several that differ the one whose image is there, else the last."""
    return [_claim_that_holds(output_dir, by_name[name]) for name in sorted(by_name)]


def _claim_that_holds(output_dir: Path, claims: Mapping[str | None, Row]) -> Row:
    rows = list(claims.values())
    if len(rows) == 1:
        return rows[0]
    # Rows of older versions, without a checksum, would hold whatever lies there: they come last.
    rows.sort(key=lambda row: row.get("png_crc32") is not None)
    whole = [r for r in rows if holds_image(image_place(output_dir, r), r.get("png_crc32"))]
    return (whole or rows)[-1]
