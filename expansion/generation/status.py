"""`expand.py --status`: how far an expanded set is, from its manifests and what was asked for.

A rate is that of the last units of a process, in images per second by a monotonic clock. How long
ago a process wrote is read from the time of its manifest file, the only figure that a wrong system
clock can falsify.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from expansion.common.errors import InputError
from expansion.common.tables import aligned
from expansion.images.variants import VariantKey
from expansion.store.expanded_set import Asked
from expansion.store.manifest import ManifestReader

HEADER = ("", "done", "missing", "failed", "images/s", "time left", "last image")
RECENT_UNITS = 20  # number of the last units of a process that its rate is computed from
SILENT_UNITS = 10  # a process counts as gone if it was silent for the time of so many units,
SILENT_SECONDS = 60.0  # but not before it was silent for so many seconds


@dataclass
class Process:
    """What the manifest of a process says about the process.

    Attributes:
        shard: Number of its shard, and number of shards.
        last_time: When it last wrote, seconds since the epoch.
        units: Images and seconds of its last units.
        ended: Whether it came to its end.
    """

    shard: tuple[int, int]
    last_time: float
    units: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT_UNITS))
    ended: bool = False

    def rate(self, now: float) -> float:
        """Images per second; 0 if the process ended or has been silent for long.

        `now` is in seconds since the epoch.
        """
        seconds = sum(seconds for _, seconds in self.units)
        patience = max(SILENT_SECONDS, SILENT_UNITS * seconds / max(len(self.units), 1))
        if self.ended or not seconds or now - self.last_time > patience:
            return 0.0
        return sum(images for images, _ in self.units) / seconds


def status_text(output_dir: Path) -> str:
    """A table with a line for each shard and one for the whole set.

    Raises:
        InputError: The folder holds no manifest, or one with a damaged line.
    """
    processes, done, failed = _read(output_dir)
    if not processes and not done:
        raise InputError(f"{output_dir} holds no manifests; expand.py has not begun it")
    asked = Asked.read(output_dir)
    unit = asked.facts.get("batch_size") if asked else None
    if asked is None or type(unit) is not int or unit < 1 or not processes:
        lines = [_cells("all", len(done), None, None, 0.0, "")]  # older sets say no more
    else:
        lines = _lines(asked, unit, processes, done, failed)
    return f"{output_dir}\n\n{aligned([HEADER, *lines], left=(0, len(HEADER) - 1))}"


def _read(output_dir: Path) -> tuple[list[Process], set[VariantKey], set[VariantKey]]:
    """Read all manifests: (processes, variants that exist, variants that could not be made)."""
    processes: dict[Path, Process] = {}
    done: set[VariantKey] = set()
    failed: set[VariantKey] = set()
    for line in ManifestReader(output_dir).new_lines():
        name = re.fullmatch(r"manifest\.(\d{1,6})-of-(\d{1,6})\.\w+\.jsonl", line.path.name)
        if name and line.path not in processes:
            shard = (int(name[1]), max(int(name[2]), 1))
            processes[line.path] = Process(shard, line.path.stat().st_mtime)
        if not line.is_event:
            row = line.row()
            done.add((row["source"], row["variant"]))
            continue
        event = line.event()
        if event["event"] == "failed":
            failed.add((event["source"], event["variant"]))
        if name:
            process = processes[line.path]
            process.ended = event["event"] == "end"
            if event["event"] == "unit":
                process.units.append((event["images"], event["seconds"]))
    return list(processes.values()), done, failed - done


def _lines(
    asked: Asked,
    unit: int,
    processes: list[Process],
    done: set[VariantKey],
    failed: set[VariantKey],
) -> list[tuple[str, ...]]:
    """The lines of the shards, and the last one of the whole set.

    The number of shards is that of the process which wrote last; earlier runs may have had others.
    """
    # Which shard each variant belongs to, by its place among all of them.
    now = time.time()
    count = asked.num_variants
    place = {source: i * count for i, source in enumerate(asked.sources)}
    num_shards = max(processes, key=lambda process: process.last_time).shard[1]

    def per_shard(keys: set[VariantKey]) -> Counter[int]:
        """How many of the variants belong to each shard."""
        asked_for = (place[s] + k for s, k in keys if s in place and k < count)
        return Counter(index // unit % num_shards for index in asked_for)

    all_of = per_shard({(source, k) for source in asked.sources for k in range(count)})
    done_of, failed_of = per_shard(done), per_shard(failed)
    # A line for each shard: how far it is, and what its newest process does.
    lines, total_rate = [], 0.0
    for number in range(num_shards):
        num_missing = all_of[number] - done_of[number]
        mine = [p for p in processes if p.shard == (number, num_shards)]
        newest = max(mine, key=lambda process: process.last_time, default=None)
        rate, last = 0.0, "not begun"
        if newest:
            ago = f"{_duration(max(now - newest.last_time, 0.0))} ago"
            rate, last = newest.rate(now), f"ended, {ago}" if newest.ended else ago
        if not num_missing:
            rate, last = 0.0, "complete"
        total_rate += rate
        title = f"shard {number} of {num_shards}"
        lines.append(_cells(title, done_of[number], num_missing, failed_of[number], rate, last))
    num_done = done_of.total()
    num_missing = all_of.total() - num_done
    lines.append(_cells("all", num_done, num_missing, failed_of.total(), total_rate, ""))
    return lines


def _cells(
    title: str, done: int, missing: int | None, failed: int | None, rate: float, last: str
) -> tuple[str, ...]:
    left = _duration(missing / rate) if missing and rate else ""
    numbers = ["" if number is None else str(number) for number in (done, missing, failed)]
    return (title, *numbers, f"{rate:.2f}" if rate else "", left, last)


def _duration(seconds: float) -> str:
    """A duration in a form such as 42 s, 3:07 min, 5:12 h or 2 d 5 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    if whole < 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
