"""Where hostile input is tried: a sandbox that notices tracebacks, hangs, escapes and run code.

One input is tried in a fresh folder, as a command would read it. Around that folder lie sentinel
files; whatever changes there was written outside. Payloads leave a mark when they run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from expansion.common.errors import run_command
from expansion.common.seeding import stable_seed

SECONDS = 10  # beyond it an input counts as hung
MEMORY = 3 << 30  # bytes of address space that an input may take beyond what the process has
LONGEST_ERROR = 4000  # characters of a readable message
OUTCOMES = ("accepted", "InputError", "traceback", "hang", "written outside", "code run")

Attempt = Callable[[], object]
# Makes one hostile input below its folder and returns what reads it.
Kind = Callable[[random.Random, "Sandbox"], Attempt]


class Hang(BaseException):
    """An input took too long; no handler of the tool's may catch it."""


@dataclass(frozen=True)
class Finding:
    """What one input ended in, with the trace or the place if that is not as it must be."""

    outcome: str
    detail: str = ""


class Sandbox:
    """A tree of sentinels with one folder in it for the input.

    Attributes:
        place: Folder of the current input and working folder; `out` below it is for the output.
        outside: Folder of sentinel files, which nothing may change.
        mark: File that a payload makes when it runs.
    """

    def __init__(self, root: Path):
        self.root = root
        self.place = root / "up" / "here" / "work"
        self.out = self.place / "out"
        self.outside = root / "outside"
        self.mark = self.outside / "code-ran"
        for name in ("secret.txt", "images/cat.png", "deep/er/file"):
            path = self.outside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"sentinel")
        self.place.mkdir(parents=True)

    def renew(self) -> None:
        """An empty folder for the next input."""
        shutil.rmtree(self.place)
        self.place.mkdir()

    def outsides(self) -> dict[str, tuple]:
        """Everything around the input's folder: path -> what would change with its content."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            if folder == str(self.place):
                folders.clear()
                continue
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                changed = None if path == str(self.place) else status.st_mtime_ns
                found[path] = (status.st_mode, None if name in folders else status.st_size, changed)
        return found


def payload(mark: Path) -> object:
    """An object whose unpickling makes the file `mark`."""

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    return Runs()


def try_input(kind: Kind, seed: int, sandbox: Sandbox) -> Finding:
    """Make the input that `seed` decides, have it read, and say what came of it."""
    sandbox.renew()
    attempt = kind(random.Random(seed), sandbox)
    before, home = sandbox.outsides(), os.getcwd()
    os.chdir(sandbox.place)
    try:
        finding = _ended(attempt)
    finally:
        os.chdir(home)
    if sandbox.mark.exists():
        sandbox.mark.rmdir()
        return Finding("code run", finding.detail)
    after = sandbox.outsides()
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    changed = [path for path in changed if path != str(sandbox.outside)]
    return Finding("written outside", ", ".join(sorted(changed))) if changed else finding


def input_seed(seed: int, name: str, index: int) -> int:
    """Seed of one input; depends on no other one."""
    return stable_seed("fuzz", seed, name, index)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """No more than `MEMORY` beyond what is in use; a blow-up then ends in a MemoryError."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _ended(attempt: Attempt) -> Finding:
    """How a command ends that makes the attempt."""

    def ring(*_: object) -> None:
        raise Hang

    handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    try:
        with _captured() as stderr:
            code = _exit_status(attempt)
    except Hang:
        return Finding("hang", traceback.format_exc(limit=-12))
    except (Exception, SystemExit):
        return Finding("traceback", traceback.format_exc(limit=-12))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    if code in (0, None):
        return Finding("accepted")
    message = stderr()
    if len(message) > LONGEST_ERROR or message.rstrip("\n").count("\n") > 0:
        return Finding("traceback", f"no one-line message: {message[:LONGEST_ERROR]}")
    return Finding("InputError", message)


def _exit_status(attempt: Attempt) -> object:
    try:
        run_command(lambda: _status(attempt()))
    except SystemExit as stop:
        return stop.code
    return None


def _status(result: object) -> int | None:
    """A command's own status; what else a function returns is success."""
    return result if isinstance(result, int) else None


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """stdout and stderr as strict as a terminal's; gives the "error:" part of stderr."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    error = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")

    def message() -> str:
        error.flush()
        written = error.buffer.getvalue().decode()
        return written[written.rfind("error: ") :]

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            yield message
    finally:
        logging.disable(level)
