"""What image files contain: the SHA-256 of their bytes, and facts learnt by decoding them.

Sets and runs are identified by content, not by file names. So that 100,000 images are read and
decoded only once, the results are kept between commands, in one file per dataset folder:

    $XDG_CACHE_HOME/dataset-expansion/<hash of the folder>.json      (default: ~/.cache/...)

An entry is valid as long as size, inode, modification and change time of the image file stay the
same; the change time moves even where a tool restores the modification time. If the file cannot be
written, each command reads all images again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from expansion.common.config import config_hash
from expansion.common.errors import JSON_ERRORS, InputError, require
from expansion.common.files import write_atomic
from expansion.images.generated_images import is_generated, message
from expansion.images.pixel_report import PixelFacts, facts_of, warn_of_pixels
from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

# Another version of Pillow may decode differently; the number behind it counts this project's own
# changes of how images are read.
READ_BY = f"{PIL.__version__}/3"
AT_REST_NS = 2 * 10**9  # a file changed this recently may change again within one tick of its clock


def readable_records(
    records: Sequence[ImageRecord], on_error: str
) -> tuple[list[ImageRecord], list[str]]:
    """Find the images that cannot be read, before any long work, and hash the others.

    Args:
        records: Images to check; each is hashed and decoded, unless an earlier command did so.
        on_error: "fail" raises for the first unreadable image, "skip" leaves such images out.

    Returns:
        The readable records, `content` and `pixels` filled in, and one message per image left out.

    Raises:
        InputError: An image cannot be read and `on_error` is "fail", or images that this project
            generated are among the real ones.
    """
    looked_at = _look_at(records)
    problems = [result for result in looked_at if isinstance(result, str)]
    if problems and on_error == "fail":
        raise InputError(problems[0])
    for problem in problems:
        logger.warning("skipped: %s", problem)
    readable = [result for result in looked_at if not isinstance(result, str)]
    warn_of_pixels(readable)
    return [record for record, _ in readable], problems


def pixels_of(records: Sequence[ImageRecord]) -> dict[str, str]:
    """File name -> a text that is equal for images of equal pixels; unreadable ones have their own.

    Args:
        records: Images; those without `pixels` are hashed and decoded as by `readable_records`.
    """
    found = {record.file_name: record.pixels for record in records if record.pixels is not None}
    unknown = [record for record in records if record.pixels is None]
    for record, result in zip(unknown, _look_at(unknown), strict=True):
        name = record.file_name
        found[name] = name if isinstance(result, str) else result[1].digest
    return found


def _look_at(records: Sequence[ImageRecord]) -> list[tuple[ImageRecord, PixelFacts] | str]:
    """Hash and decode images, with what earlier commands know of them; a text if unreadable."""
    known: dict[Path, _Known] = {}
    for root in {_root(record) for record in records}:
        known[root] = _Known(root)

    def look(record: ImageRecord) -> tuple[ImageRecord, PixelFacts] | str:
        try:
            content, facts = known[_root(record)].look(record)
        except InputError as error:
            return str(error)
        return dataclasses.replace(record, content=content, pixels=facts.digest), facts

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looked_at = list(pool.map(look, records))
    generated = sorted(name for each in known.values() for name in each.generated)
    require(not generated, message(generated))
    for each in known.values():
        each.save()
    return looked_at


def content_summary(records: Sequence[ImageRecord]) -> str:
    """A text that identifies a set of images: their number, and a hash of names, labels, contents.

    Args:
        records: As `readable_records` returns them; their order counts.
    """
    facts = [
        (r.file_name, r.label, r.class_name, r.source, r.crop_bottom, str(r.reading), r.content)
        for r in records
    ]
    return f"{len(records)} images, content {config_hash(facts)}"


class _Known:
    """What earlier commands learnt about the images below one folder, and this one adds to it."""

    def __init__(self, root: Path):
        self.root = root
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self.path = Path(base, "dataset-expansion", f"{name}.json")
        self.entries = self._read()
        self.num_new = 0
        self.generated: list[str] = []  # images of our own making that are taken for real ones

    def look(self, record: ImageRecord) -> tuple[str, PixelFacts]:
        """SHA-256 of the image's bytes, and facts about its pixels.

        Raises:
            InputError: The image cannot be read.
        """
        try:
            stat = record.path.stat()
        except OSError:
            record.load()  # raises an error that says what is wrong
            raise
        now = time.time_ns()
        way = f"{record.reading}{record.part}-{record.crop_bottom}"
        key = f"{os.path.relpath(record.path, self.root)}?{way}"
        state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = self.entries.get(key)
        if entry and entry[0] == state:
            notes, *facts = entry[2]
            return entry[1], PixelFacts(tuple(notes), *facts)
        encoded = record.read_bytes()
        if record.source is None and is_generated(encoded):
            self.generated.append(record.file_name)
        digest = hashlib.sha256(encoded).hexdigest()
        facts = facts_of(record.decoded())
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > AT_REST_NS:
            self.entries[key] = [state, digest, dataclasses.astuple(facts)]
            self.num_new += 1
        return digest, facts

    def save(self) -> None:
        """Write new entries to the file, together with those that other processes added to it."""
        if not self.num_new:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
            self.path.parent.mkdir(parents=True, exist_ok=True)
            entries = {**self._read(), **self.entries}
            write_atomic(self.path, json.dumps({"read_by": READ_BY, "entries": entries}))

    def _read(self) -> dict[str, list]:
        with contextlib.suppress(OSError, *JSON_ERRORS, KeyError, TypeError):
            kept = json.loads(self.path.read_bytes())
            if isinstance(kept, dict) and kept.get("read_by") == READ_BY:
                return dict(kept["entries"])
        return {}


def _root(record: ImageRecord) -> Path:
    """The folder that a record's `file_name` is relative to; for an image in a tar, the tar's."""
    if record.part:
        return record.path.parent
    depth = record.file_name.count("/")
    parents = record.path.parents
    return parents[min(depth, len(parents) - 1)]


def same_pixels(records: Sequence[ImageRecord], others: Iterable[ImageRecord]) -> list[str]:
    """File names of the records that show what one of `others` shows, pixel by pixel.

    Files may differ in format, compression and metadata.

    Args:
        records: Images in question.
        others: Images that none of them may be.
    """
    known = set(pixels_of(list(others)).values())
    return [name for name, pixels in pixels_of(records).items() if pixels in known]
