"""Manifests: files in which every process notes its images, one JSON line each, and events.

    <output>/manifest.<split>-of-<total>.<process>.jsonl   of a shard's process
    <output>/manifest.<tar>.jsonl                          of a finished tar

Lines with the key "event" tell what happened to a process: a "unit" was computed, a variant
"failed", the process came to its "end". They are left out of `metadata.jsonl`, which is the same
however the work was shared.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, NamedTuple

from expansion.common.errors import JSON_ERRORS, InputError, brief, is_text
from expansion.common.files import write_atomic
from expansion.common.seeding import image_seed
from expansion.images.variants import Variant, VariantKey
from expansion.store.places import holds_image, image_place

Row = dict[str, Any]
RowsByName = dict[str, dict[str | None, Row]]  # file name -> checksum of the image -> its last row
SelectRows = Callable[[list[Row]], list[Row]]

EVENT_START = b'{"event"'
FAILED = b'{"event": "failed"'


@dataclass(frozen=True)
class MadeWith:
    """What all images of a run are made with, as their rows say it.

    Attributes:
        method: Name of the method.
        model: Identity of the checkpoint.
        config_hash: Hash of all settings that decide the images.
        seed: Run seed.
    """

    method: str
    model: str
    config_hash: str
    seed: int


def manifest_row(
    variant: Variant, made_with: MadeWith, details: Mapping[str, float]
) -> dict[str, Any]:
    """The row of an image in the manifest.

    Args:
        variant: The image.
        made_with: What all images of its run are made with.
        details: Figures of the method about it, by name.
    """
    source = variant.source
    return {
        "file_name": variant.file_name,
        "label": source.label,
        "class": source.class_name,
        "source": source.file_name,
        "source_sha256": source.content,
        "variant": variant.number,
        "seed": image_seed(made_with.seed, source.file_name, variant.number),
        "prompt": variant.prompt,
        "method": made_with.method,
        "model": made_with.model,
        "config": made_with.config_hash,
        **({"details": dict(details)} if details else {}),
    }


class ProcessManifest:
    """The manifest of one process; several threads may append to it.

    Args:
        output_dir: Folder of the expanded set.
        split: Number of the shard.
        total_split: Number of shards.
    """

    def __init__(self, output_dir: Path, split: int, total_split: int):
        process = uuid.uuid4().hex[:8]
        self.path = output_dir / f"manifest.{split}-of-{total_split}.{process}.jsonl"
        self.lock = threading.Lock()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; if the disk is full, raises OSError and leaves the file as it was."""
        with self.lock:
            append_line(self.path, json.dumps(row, ensure_ascii=False))

    def note(self, event: str, **facts: Any) -> None:
        """Add an event."""
        self.append({"event": event, **facts})


def append_line(path: Path, line: str) -> None:
    """Append `line` to a file that only this process writes; a failure leaves it as it was."""
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
    """A line of a manifest: its file, its number from 1, and its content."""

    path: Path
    number: int
    text: bytes

    @property
    def is_event(self) -> bool:
        return self.text.startswith(EVENT_START)

    def event(self) -> dict[str, Any]:
        """The event that the line tells of.

        Raises:
            InputError: The line says something else.
        """
        try:
            return _checked_event(json.loads(self.text))
        except (*JSON_ERRORS, KeyError, TypeError, OverflowError) as error:
            raise InputError(
                f"{self.path}, line {self.number}: no event ({error}); remove the line"
            ) from error

    def failed(self) -> set[VariantKey]:
        """A set with the variant that could not be made, if the line says so; else an empty set."""
        if not self.text.startswith(FAILED):
            return set()
        event = self.event()
        return {(event["source"], event["variant"])}

    def row(self) -> dict[str, Any]:
        """The row of the image that the line is about.

        Raises:
            InputError: The line is damaged; the message names file and line.
        """
        try:
            return _checked_row(json.loads(self.text.decode("utf-8", "replace")))
        except JSON_ERRORS as error:
            raise InputError(
                f"{self.path}, line {self.number}: no manifest row ({error}); remove the line, "
                "and the image is made again by the next expand.py"
            ) from error


def _checked_row(row: Any) -> dict[str, Any]:
    """Return a manifest row if it names an image below the folder, its class and its real image.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(row, dict):
        raise ValueError("no object")
    for key in ("file_name", "class", "source"):
        if not isinstance(row.get(key), str) or not is_text(row[key]):
            raise ValueError(f"{key} is {brief(row.get(key))}, not text")
    path = PurePosixPath(row["file_name"])
    # A backslash or a colon leads elsewhere on Windows; names that this project gives have neither.
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00]", row["file_name"]):
        raise ValueError(f"{brief(row['file_name'])} is outside the folder")
    if type(row.get("variant")) is not int or row["variant"] < 0:
        raise ValueError(f"variant is {brief(row.get('variant'))}, no number from 0")
    if not isinstance(row.get("details", {}), dict):
        raise ValueError(f"details are {brief(row['details'])}, no object")
    return row


def _checked_event(event: Any) -> dict[str, Any]:
    """Return an event if it holds what its kind needs.

    Raises:
        KeyError, TypeError, ValueError: It does not.
    """
    if event["event"] == "unit":
        images, seconds = int(event["images"]), max(float(event["seconds"]), 0.0)
        return {**event, "images": images, "seconds": seconds}
    if event["event"] == "failed":
        return {**event, "source": str(event["source"]), "variant": int(event["variant"])}
    return event


class ManifestReader:
    """Reads the manifests of a folder as they grow, each line once and only when it is complete.

    A last line that a crash cut off never becomes complete; its image is made again.
    """

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        # path -> (inode, bytes read, lines read); another inode is a manifest that was replaced.
        self.places: dict[Path, tuple[int, int, int]] = {}

    def new_lines(self) -> Iterator[Line]:
        """Lines that were not returned before, in the order of their manifests' names."""
        for path in manifest_paths(self.output_dir):
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
    """The manifests of a folder, sorted by name; none if the folder does not exist."""
    try:
        names = os.listdir(output_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    manifests = [n for n in names if n.startswith("manifest.") and n.endswith(".jsonl")]
    return [output_dir / name for name in sorted(manifests)]


def read_manifest(output_dir: Path) -> list[dict[str, Any]]:
    """The rows of all manifests, one for each image, sorted by file name."""
    by_name: RowsByName = {}
    _read_rows(ManifestReader(output_dir), by_name)
    return _sorted_rows(output_dir, by_name)


def merge_manifests(output_dir: Path, select: SelectRows = lambda rows: rows) -> list[Row]:
    """Write `metadata.jsonl` from all manifests and return its rows.

    Several processes may end together. If another one ended meanwhile, it may have written the file
    with rows that this one lacked, and been overwritten; so the file is written again.

    Args:
        output_dir: Folder of the expanded set.
        select: Chooses the rows of `metadata.jsonl` from all rows.
    """
    reader = ManifestReader(output_dir)
    by_name: RowsByName = {}
    _read_rows(reader, by_name)
    while True:
        rows = select(_sorted_rows(output_dir, by_name))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        # UTF-8 cannot hold half of a surrogate pair, so it is written as JSON's escape.
        content = "".join(lines).encode("utf-8", "backslashreplace")
        write_atomic(output_dir / "metadata.jsonl", content)
        if not _read_rows(reader, by_name):
            return select(_sorted_rows(output_dir, by_name))


def _read_rows(reader: ManifestReader, by_name: RowsByName) -> int:
    """Add the new rows to `by_name`; returns how many processes ended according to new lines."""
    num_ended = 0
    for line in reader.new_lines():
        if line.is_event:
            num_ended += line.text.startswith(b'{"event": "end"')
            continue
        row = line.row()
        claims = by_name.setdefault(row["file_name"], {})
        checksum = row.get("png_crc32")
        # The row that names the image's tar replaces the one of its making, never the reverse.
        if "tar" in row or "tar" not in claims.get(checksum, {}):
            claims.pop(checksum, None)
            claims[checksum] = row
    return num_ended


def _sorted_rows(output_dir: Path, by_name: RowsByName) -> list[Row]:
    """One row for each file: of several, the one whose image exists, else the last."""
    return [_claim_that_holds(output_dir, by_name[name]) for name in sorted(by_name)]


def _claim_that_holds(output_dir: Path, claims: Mapping[str | None, Row]) -> Row:
    rows = list(claims.values())
    if len(rows) == 1:
        return rows[0]
    # Rows of older versions have no checksum and fit any image: they count only if no other does.
    rows.sort(key=lambda row: row.get("png_crc32") is not None)
    whole = [r for r in rows if holds_image(image_place(output_dir, r), r.get("png_crc32"))]
    return (whole or rows)[-1]
