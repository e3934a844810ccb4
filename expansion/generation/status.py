"""`expand.py --status`: how far the processes of an expanded set are, from the manifests alone.

    <output>/.order.<hash>.json   the real images in order: which shard an image belongs to

Rates are images per second of monotonic time. Wall-clock times only tell how long ago something
happened; a clock that jumps makes that wrong, and nothing else.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.common.config import config_hash
from expansion.common.errors import JSON_ERRORS, InputError
from expansion.common.files import write_atomic
from expansion.common.tables import aligned
from expansion.store.manifest import Line, ManifestReader, ProcessManifest, is_of_process

if TYPE_CHECKING:
    from expansion.generation.plan import Plan

RECENT_UNITS = 20  # the rate is that of the last units of a process
SILENT_UNITS = 10  # a process that took so many times a unit's time since its last is "silent"
LARGEST_SET = 10**9  # images
SILENT_SECONDS = 60.0  # and this long at least
NAME_START = b'{"file_name": "'


def note_start(manifest: ProcessManifest, plan: Plan, num_missing: int) -> None:
    """Write down what a process sets out to do, for `--status`."""
    order = {
        "stems": {record.file_name: plan.stems[record.file_name] for record in plan.records},
        "variants": plan.config.num_images_per_prompt,
    }
    name = config_hash(list(order["stems"].items()) + [order["variants"]])
    path = _order_path(manifest.path.parent, name)
    if not path.exists():
        write_atomic(path, json.dumps(order, ensure_ascii=False))
    manifest.note(
        "start",
        shard=list(plan.shard[:2]) if plan.shard else None,
        total=len(plan.items),
        missing=num_missing,
        unit=max(len(unit) for unit in plan.units),
        order=name,
    )


@dataclass
class Process:
    """What one manifest tells.

    Attributes:
        shard: (number, count), or None for a process that helps all shards.
        start: The "start" event, if there is one.
        names: Images it wrote, as JSON text.
        failures: (file_name of the real image, variant) of images it could not make.
        units: Images and seconds of its last units.
        last_time: Wall-clock seconds of its last event; 0 if there is none.
    """

    name: str
    shard: tuple[int, int] | None
    start: Mapping[str, Any] = field(default_factory=dict)
    names: set[bytes] = field(default_factory=set)
    failures: set[tuple[str, int]] = field(default_factory=set)
    units: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT_UNITS))
    last_time: float = 0.0
    ended: bool = False

    def add(self, line: Line) -> None:
        """Take in an event or the row of an image."""
        if not line.is_event:
            self.names.add(_name(line))
            return
        try:
            event = json.loads(line.text)
            kind, self.last_time = event["event"], float(event.get("time", 0))
            if kind == "start":
                self.start = _checked_start(event)
            elif kind == "unit":
                self.units.append((int(event["images"]), max(float(event["seconds"]), 0.0)))
            elif kind == "failed":
                self.failures.add((str(event["source"]), int(event["variant"])))
            self.ended = kind == "end"
        except (*JSON_ERRORS, KeyError, TypeError, OverflowError) as error:
            raise InputError(
                f"{line.path}, line {line.number}: no event ({error}); remove the line"
            ) from error

    @property
    def rate(self) -> float:
        """Images per second of its last units; 0 if it has none or has ended."""
        seconds = sum(seconds for _, seconds in self.units)
        return 0.0 if self.ended or not seconds else sum(n for n, _ in self.units) / seconds

    def state(self, now: float) -> str:
        """ "running", "silent" (perhaps killed) or "ended"."""
        if self.ended or not self.start:
            return "ended"
        per_unit = sum(seconds for _, seconds in self.units) / max(len(self.units), 1)
        silent = now - self.last_time > max(SILENT_SECONDS, SILENT_UNITS * per_unit)
        return "silent" if silent else "running"


def _checked_start(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """A "start" event of the expected types; raises ValueError, KeyError or TypeError."""
    unit, order = int(event["unit"]), event["order"]
    if unit < 1 or not isinstance(order, str) or not re.fullmatch("[0-9a-f]+", order):
        raise ValueError("no unit and order")
    return {**event, "time": float(event["time"]), "unit": unit}


@dataclass(frozen=True)
class Order:
    """Which shard every image belongs to."""

    stems: Mapping[str, str]
    variants: int
    unit: int
    shards: int

    def indices(self, names: set[bytes]) -> set[int]:
        """Numbers, in the order of work, of the images that have a place in it."""
        first = {stem: i * self.variants for i, stem in enumerate(self.stems.values())}
        found = set()
        for text in names:
            # Few names hold an escape; parsing all of them as JSON would take most of the time.
            name = text[1:-1].decode("utf-8", "replace")
            if "\\" in name:
                name = json.loads(text.decode("utf-8", "replace"), strict=False)
            stem, _, rest = name.rpartition("_expand_")
            variant = rest.removesuffix(".png")
            if (
                stem in first
                and re.fullmatch("[0-9]{1,9}", variant)
                and int(variant) < self.variants
            ):
                found.add(first[stem] + int(variant))
        return found

    def failed(self, failures: set[tuple[str, int]]) -> set[int]:
        """The same for (file_name of the real image, variant)."""
        place = {source: i * self.variants for i, source in enumerate(self.stems)}
        return {place[source] + variant for source, variant in failures if source in place}

    def per_shard(self, indices: set[int]) -> list[int]:
        """How many of the images belong to each shard."""
        counts = Counter(index // self.unit % self.shards for index in indices)
        return [counts[shard] for shard in range(self.shards)]


def status_text(output_dir: Path) -> str:
    """A table: a line per shard, per running process that helps all, and of the whole.

    Raises:
        InputError: No manifest there, or a line that is none.
    """
    processes, packed = _read(output_dir)
    if not processes and not packed:
        raise InputError(f"{output_dir} holds no manifests; expand.py has not begun it")
    names = set(packed).union(*(process.names for process in processes))
    started = [p for p in processes if p.start]
    order = _order(output_dir, started)
    now = time.time()
    if order is None:
        lines = [_cells("all", len(names), None, None, 0.0, "")]
    else:
        lines = _lines(order, names, started, now)
    header = ("", "done", "missing", "failed", "images/s", "time left", "last image")
    return f"{output_dir}\n\n{aligned([header, *lines], left=(0, len(header) - 1))}"


def _order_path(output_dir: Path, name: str) -> Path:
    return output_dir / f".order.{name}.json"


def _read(output_dir: Path) -> tuple[list[Process], set[bytes]]:
    """The processes, and the images in finished tars."""
    processes: dict[Path, Process] = {}
    packed = set()
    for line in ManifestReader(output_dir).new_lines():
        if line.path not in processes:
            if not is_of_process(line.path):
                packed.add(_name(line))
                continue
            _, whose, process, _ = line.path.name.split(".")
            numbers = [int(n) for n in whose.split("-of-") if re.fullmatch("[0-9]{1,6}", n)]
            shard = (numbers[0], numbers[1]) if len(numbers) == 2 else None
            processes[line.path] = Process(process, shard)
        processes[line.path].add(line)
    return list(processes.values()), packed


def _order(output_dir: Path, started: Sequence[Process]) -> Order | None:
    """That of the process that started last; shards count as they did when one last began."""
    if not started:
        return None
    newest = sorted(started, key=lambda process: process.start["time"])
    shards = next((p.shard[1] for p in reversed(newest) if p.shard and p.shard[1]), 1)
    path = _order_path(output_dir, newest[-1].start["order"])
    try:
        order = json.loads(path.read_text(encoding="utf-8"))
        stems = {str(source): str(stem) for source, stem in order["stems"].items()}
        variants = int(order["variants"])
        if not 0 < variants * len(stems) <= LARGEST_SET:
            return None
        return Order(stems, variants, newest[-1].start["unit"], shards)
    except (OSError, *JSON_ERRORS, KeyError, TypeError, AttributeError, OverflowError):
        return None  # without it there is still the number of images


def _lines(
    order: Order, names: set[bytes], started: Sequence[Process], now: float
) -> list[tuple[str, ...]]:
    done = order.indices(names)
    failed = order.failed(set().union(*(p.failures for p in started))) - done
    num_items = len(order.stems) * order.variants
    rows = zip(*map(order.per_shard, (set(range(num_items)), done, failed)), strict=True)
    lines, total_rate = [], 0.0
    for number, (num_all, num_done, num_failed) in enumerate(rows):
        title = f"shard {number} of {order.shards}"
        mine = [p for p in started if p.shard == (number, order.shards)]
        newest = max(mine, key=lambda process: process.start["time"], default=None)
        rate = newest.rate if newest and newest.state(now) == "running" else 0.0
        last = _last(newest, now) if newest else "not begun"
        if num_all == num_done:
            rate, last = 0.0, "complete"
        total_rate += rate
        lines.append(_cells(title, num_done, num_all - num_done, num_failed, rate, last))
    for process in started:
        if process.shard is None and process.state(now) != "ended":
            rate = process.rate if process.state(now) == "running" else 0.0
            total_rate += rate
            made = f"({len(process.names)})"
            title, last = f"joined {process.name}", _last(process, now)
            lines.append(_cells(title, made, None, len(process.failures), rate, last))
    num_missing = num_items - len(done)
    lines.append(_cells("all", len(done), num_missing, len(failed), total_rate, ""))
    return lines


def _cells(
    title: str, done: int | str, missing: int | None, failed: int | None, rate: float, last: str
) -> tuple[str, ...]:
    left = _duration(missing / rate) if missing and rate else ""
    numbers = ["" if number is None else str(number) for number in (done, missing, failed)]
    return (title, *numbers, f"{rate:.2f}" if rate else "", left, last)


def _last(process: Process, now: float) -> str:
    ago = _duration(max(now - process.last_time, 0.0))
    return f"{ago} ago" if process.state(now) == "running" else f"{process.state(now)}, {ago} ago"


def _duration(seconds: float) -> str:
    """As 42 s, 3:07 min, 5:12 h or 2 d 5 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    if whole < 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _name(line: Line) -> bytes:
    """The file_name of a row as JSON text; nothing else of the row is decoded where possible."""
    if line.text.startswith(NAME_START):
        end = line.text.find(b'"', len(NAME_START))
        text = line.text[len(NAME_START) - 1 : end + 1]
        if b"\\" not in text and end > 0:
            return text
    return json.dumps(line.row()["file_name"], ensure_ascii=False).encode()
