"""Stand-ins for the scripts that a study runs, called by real worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from expansion.common.errors import require
from expansion.common.stopping import finishing_first


def main(arguments: Sequence[str]) -> int:
    """A command: WORDS are what it does, one after another."""
    for word in arguments:
        kind, _, value = word.partition("=")
        if kind == "say":
            print(value)
        elif kind == "bar":
            sys.stderr.write(f"\r{value}")
            sys.stderr.flush()
        elif kind == "mark":
            Path(value).write_text(str(os.getpid()))
        elif kind == "wait_for":
            wait_for(Path(value))
        elif kind == "refuse":
            require(False, value)
        elif kind == "break":
            raise RuntimeError(value)
        elif kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "status":
            return int(value)
        elif kind == "work":  # as an expansion: what is in flight is finished first
            with finishing_first() as stop:
                Path(value).touch()
                while not stop():
                    time.sleep(0.01)
                Path(f"{value}.finished").touch()
                return stop.exit_status
        elif kind == "argv":
            Path(value).write_text(" ".join(sys.orig_argv))
    return 0


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


def add(one: int, other: int) -> int:
    return one + other
