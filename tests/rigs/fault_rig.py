"""Kills real expansions at random moments, resumes them, and compares with undisturbed ones.

    python -m tests.rigs.fault_rig --kills 200 --work_dir rig
    python -m tests.rigs.fault_rig --kills 50 --kinds two_shards --seed 3 --num_inference_steps 8

Processes of expand.py work on the embedded digits. Half of the kills are SIGKILLs at a time drawn
uniformly from start-up to the end, the others hit a random step of writing, such as between a file
and its rename. A folder is killed and resumed again and again until it is complete, or until it has
had its share of kills and is completed by one more, undisturbed process. Options that this tool
lacks go to expand.py. Exit status 1 if anything was lost, duplicated, corrupt, different or left
over, or if a process failed by itself.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tests.rigs.warm_processes import ColdProcess, WarmProcesses

COMMON = (
    "--dataset digits --shots 1 --num_images_per_prompt 3 --num_inference_steps 4 "
    "--batch_size 2 --device cpu"
).split()
GUIDE = (  # an untrained guide classifier does
    "import sys, torch\n"
    "from expansion.classifier.backbones import Classifier, classifier_state\n"
    "torch.manual_seed(0)\n"
    "torch.save(classifier_state(Classifier('resnet10_tiny', 10, 32)), sys.argv[1])\n"
)
FAULTS = ("lost", "duplicated", "corrupt", "different", "left over", "failed")
WHOLE_FILES = ("classes.json", "contact_sheet.png")
PROCESS_NAME = re.compile(r"[0-9a-f]{8,}|\d+-of-\d+")


@dataclass(frozen=True)
class Kind:
    """How a set is made: by which method, and by which processes side by side."""

    method: str
    shards: tuple[tuple[str, ...], ...] = ((),)  # further options of each process


KINDS = {
    "img2img": Kind("img2img"),
    "distdiff": Kind("distdiff"),
    "dreamda": Kind("dreamda"),
    "two_shards": Kind(
        "img2img", tuple(("--total_split", "2", "--split", str(i)) for i in range(2))
    ),
    "same_shard": Kind("img2img", ((), ())),
}


@dataclass
class Reference:
    """An undisturbed set and how long it took, seconds."""

    folder: Path
    duration: float
    start_up: float  # until the first image


@dataclass
class State:
    """What a folder holds while it is being made."""

    total: int
    listed: int = 0
    loose: int = 0  # images without a row, unfinished files, rows cut off
    begun: int = 0  # when the last process began to sample


@dataclass
class Counts:
    """What happened: kills by phase and by kind, faults, folders."""

    phases: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    cold: int = 0
    folders: int = 0
    images: int = 0

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


def images_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every image, in files or tar files."""
    for path in sorted(folder.rglob("*.png")):
        if path.parent != folder:
            yield path.relative_to(folder).as_posix(), path.read_bytes()
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                yield member.name, archive.extractfile(member).read()


def rows_of(folder: Path) -> list[dict]:
    """Rows of `metadata.jsonl`."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def is_decodable(name: str, content: bytes) -> bool:
    if not name.endswith(".png"):
        return True
    try:
        Image.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError):
        return False
    return True


def other_files(folder: Path) -> Counter:
    """Files that are no images, with what differs between processes left out of their names."""
    names = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    others = [n for n in names if n.suffix != ".tar" and (len(n.parts) == 1 or n.suffix != ".png")]
    return Counter(PROCESS_NAME.sub("*", name.as_posix()) for name in others)


def compare(folder: Path, reference: Path) -> Counter:
    """Count the faults of a finished set."""
    faults = Counter(dict.fromkeys(FAULTS, 0))
    expected, found = dict(images_of(reference)), list(images_of(folder))
    names = Counter(name for name, _ in found)
    rows, expected_rows = rows_of(folder), {row["file_name"]: row for row in rows_of(reference)}
    listed = Counter(row["file_name"] for row in rows)
    faults["lost"] = len(expected.keys() - names) + len(expected_rows.keys() - listed)
    for seen, wanted in ((names, expected), (listed, expected_rows)):
        faults["duplicated"] += sum(n - (name in wanted) for name, n in seen.items())
    faults["corrupt"] = sum(not is_decodable(name, content) for name, content in found)
    faults["different"] = sum(expected.get(name, content) != content for name, content in found)
    faults["different"] += sum(expected_rows.get(row["file_name"], row) != row for row in rows)
    for name in WHOLE_FILES:
        here = folder / name
        same = here.is_file() and here.read_bytes() == (reference / name).read_bytes()
        faults["different"] += not same
    faults["left over"] = sum(
        count for name, count in other_files(folder).items() if name not in other_files(reference)
    )
    return faults


def state_of(folder: Path, total: int) -> State:
    """Read by nothing but the names of files and the number of lines in manifests."""
    state, listed = State(total), set()
    if (folder / "classes.json").exists():
        state.begun = (folder / "classes.json").stat().st_mtime_ns
    for path in folder.glob("manifest.*.jsonl"):
        *whole, last = path.read_bytes().split(b"\n")
        listed |= {json.loads(line)["file_name"] for line in whole if b'{"event"' not in line}
        state.loose += bool(last)
    state.listed = len(listed)
    images = sum(path.parent != folder for path in folder.rglob("*.png"))
    state.loose += max(0, images - state.listed) + len(list(folder.rglob(".*.partial")))
    return state


def phase_of(before: State, after: State) -> str:
    """Where a process was when it was killed."""
    if after.listed >= after.total:
        return "ending"
    if after.loose > before.loose:
        return "writing"
    return "sampling" if after.begun > before.begun else "starting"


class Rig:
    """Disturbs expansions below `work_dir`.

    Args:
        server: Forks the warm processes.
        options: Further options of expand.py.
        cold_share: Share of processes that begin with a new Python, and take longer to start.
    """

    def __init__(
        self,
        work_dir: Path,
        server: WarmProcesses,
        options: Sequence[str] = (),
        cold_share: float = 0.1,
        seed: int = 0,
    ):
        self.work_dir, self.server, self.options = work_dir, server, tuple(options)
        self.cold_share, self.random = cold_share, random.Random(seed)
        self.counts = Counts()
        self.references: dict[str, Reference] = {}
        self.cold_start = 0.0  # seconds that a new Python takes longer
        self._num_logs = 0

    def start(
        self, method: str, output: Path, *more: str, cold: bool = False, die_after: int = 0
    ) -> ColdProcess:
        """Start a process that expands into `output`."""
        self._num_logs += 1
        log = self.work_dir / "logs" / f"{self._num_logs:05d}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        places = ("--data_dir", str(self.work_dir / "data"), "--output_dir", str(output))
        guide = ("--guidance_step", "2", "--encoder_weight_path", f"{self.work_dir}/guide.pth.tar")
        guide = guide if method == "distdiff" else ()
        line = [*COMMON, "--method", method, *places, *guide, *self.options, *more]
        if cold:
            return ColdProcess(["expand.py", *line], log)
        die = (output, die_after, self.random.choice((0.0, 0.0003, 0.001))) if die_after else None
        return self.server.start(line, log, die=die)

    def prepare(self, methods: Sequence[str]) -> None:
        """Make an undisturbed set per method, in a new Python if any process is to be one."""
        self.server.start(
            [self.work_dir / "guide.pth.tar"], self.work_dir / "guide.log", GUIDE
        ).wait()
        for method in methods:
            folders = [self.work_dir / "reference" / f"{method}{i}" for i in range(2)]
            for folder, cold in zip(folders, (self.cold_share > 0, False), strict=True):
                begun = time.time()
                process = self.start(method, folder, cold=cold)
                if process.wait() != 0:
                    raise RuntimeError(f"undisturbed {method}: {process.log.read_text()}")
                duration = time.time() - begun
                if cold:
                    cold_duration = duration
            if self.cold_share > 0:
                self.cold_start = cold_duration - duration
            first = min(path.stat().st_mtime for path in folder.glob("manifest.*"))
            first = min([first, *(p.stat().st_mtime for p in folder.glob("*/*.png"))])
            self.references[method] = Reference(folders[0], duration, first - begun)
            self._add_faults(compare(folders[1], folders[0]), f"second undisturbed {method}")

    def disturb(self, name: str, num_kills: int) -> None:
        """Make one set of this kind, killing its processes up to `num_kills` times."""
        kind = KINDS[name]
        folder = self.work_dir / f"set{self.counts.folders:04d}_{name}"
        first_kill = self.counts.kills
        complete = False
        while not complete and self.counts.kills - first_kill < num_kills:
            state = state_of(folder, len(rows_of(self.references[kind.method].folder)))
            if state.listed >= state.total and self.random.random() < 0.8:
                break  # what little is left to do does not deserve more of the kills
            complete = self._attempt(name, kind, folder)
        if not complete:
            process = self.start(kind.method, folder)
            self._note_failure(process, process.wait())
        faults = compare(folder, self.references[kind.method].folder)
        self._add_faults(faults, str(folder))
        self.counts.folders += 1
        self.counts.images += len(list(images_of(folder)))
        if not faults.total():
            shutil.rmtree(folder)

    def _attempt(self, name: str, kind: Kind, folder: Path) -> bool:
        """Start the processes and kill them; True if all came to their end."""
        reference = self.references[kind.method]
        before = state_of(folder, len(rows_of(reference.folder)))
        missing = max(0, before.total - before.listed) / before.total
        living: list[tuple[ColdProcess, float]] = []
        for options in kind.shards:
            cold = self.random.random() < self.cold_share
            aimed = not cold and self.random.random() < 0.5
            # An image takes about four changes; a few more come before and after.
            changes = int(4 * before.total * missing / len(set(kind.shards))) + 8
            die_after = self.random.randint(1, changes) if aimed else 0
            span = reference.start_up + 1.2 * (reference.duration - reference.start_up) * missing
            delay = self.random.uniform(0, span + cold * self.cold_start)
            begun = time.monotonic()
            process = self.start(kind.method, folder, *options, cold=cold, die_after=die_after)
            self.counts.cold += cold
            living.append((process, begun + (300 if aimed else delay)))
        complete = True
        while living:
            for process, deadline in list(living):
                status = process.poll()
                if status is None and time.monotonic() > deadline:
                    process.send(signal.SIGKILL)
                    status = process.wait()
                if status is None:
                    continue
                living.remove((process, deadline))
                if status == -signal.SIGKILL:
                    self.counts.phases[phase_of(before, state_of(folder, before.total))] += 1
                    self.counts.kinds[name] += 1
                complete = complete and status == 0
                self._note_failure(process, status)
            time.sleep(0.002)
        return complete

    def _note_failure(self, process: ColdProcess, status: int) -> None:
        if status not in (0, -signal.SIGKILL):
            self._add_faults(Counter(failed=1), f"exit status {status}: {process.log}")
        else:
            process.log.unlink(missing_ok=True)  # none if it was killed at once

    def _add_faults(self, faults: Counter, place: str) -> None:
        self.counts.faults.update(faults)
        if faults.total():
            print(f"FAULTS in {place}: {dict(+faults)}", flush=True)


def describe(counts: Counts) -> str:
    """The counts as text."""

    def listed(counter: Counter, names: Sequence[str]) -> str:
        return ", ".join(f"{name} {counter[name]}" for name in names)

    phases = ("starting", "sampling", "writing", "ending")
    return (
        f"{counts.kills} kills in {counts.folders} sets of {counts.images} images; "
        f"{counts.cold} of the processes were started cold\n"
        f"killed while {listed(counts.phases, phases)}\n"
        f"kills by kind: {listed(counts.kinds, sorted(counts.kinds))}\n"
        f"faults: {listed(counts.faults, FAULTS)}"
    )


def run(rig: Rig, kinds: Sequence[str], num_kills: int, kills_per_set: int) -> Counts:
    """Spend `num_kills` on sets of all kinds in turn."""
    rig.prepare(sorted({KINDS[name].method for name in kinds}))
    while rig.counts.kills < num_kills:
        name = kinds[rig.counts.folders % len(kinds)]
        rig.disturb(name, min(rig.random.randint(1, kills_per_set), num_kills - rig.counts.kills))
        print(f"{rig.counts.kills} of {num_kills} kills, last set {name}", flush=True)
    return rig.counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rigs.fault_rig",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200, help="processes to kill")
    parser.add_argument("--kills_per_set", type=int, default=12, help="at most, in one folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--work_dir", type=Path, required=True, help="new folder for everything")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="what to disturb"
    )
    parser.add_argument(
        "--cold_share",
        type=float,
        default=0.1,
        help="share of processes started as a user does; the others are forked from one that has "
        "imported torch",
    )
    options, further = parser.parse_known_args(arguments)
    options.work_dir.mkdir(parents=True)
    work_dir = options.work_dir.resolve()
    with WarmProcesses() as server:
        rig = Rig(work_dir, server, further, options.cold_share, options.seed)
        counts = run(rig, options.kinds, options.kills, options.kills_per_set)
    print(describe(counts))
    return 1 if counts.faults.total() else 0


if __name__ == "__main__":
    sys.exit(main())
