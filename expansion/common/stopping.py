"""Ctrl-C and SIGTERM: end at once, or finish what is in flight first.

SIGTERM comes from `kill`, from SLURM at the end of the allotted time and from torchrun, which also
turns Ctrl-C into signals to its processes.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# `timeout`, launchers and terminals may deliver one request two or three times within this time.
REPETITION_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal ended the command; no `except Exception` catches it."""


class StopRequest:
    """Whether a signal has asked for the end; called, it answers.

    Attributes:
        signal: The first one that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = math.inf
        self._first = [True]

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + number of the signal, as shells have it."""
        return 128 + (self.signal or 0)

    def note(self, number: int) -> str:
        """What this signal is: "first", "again", or "repetition" of one just received."""
        now = time.monotonic()
        try:
            self._first.pop()  # in one go: a repetition may come between any two steps of this
        except IndexError:
            return "again" if now - self._since > REPETITION_SECONDS else "repetition"
        self.signal, self._since = signal.Signals(number), now
        return "first"


@contextmanager
def ending_at_once() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM raise Stopped inside; to be used around a whole command.

    After a signal the process is about to end: repetitions are ignored from then on, also outside,
    a later one ends it without clean-up, and nothing is printed of errors in finalizers, since a
    signal to the whole process group also ends the workers that these wait for.
    """
    request = StopRequest()

    def stop(number: int, _: FrameType | None) -> None:
        kind = request.note(number)
        if kind == "first":
            sys.unraisablehook = lambda _: None
            raise Stopped
        if kind == "again":
            die_of(request.signal)

    with _handler(stop, keep=request):
        yield request


def die_at_exit(number: int) -> None:
    """When this process has ended in its usual way, let the signal be what it died of.

    A shell goes on with its loop after a command that exits, whatever the status; only one that
    died of Ctrl-C ends it. `$?` is 128 + number either way. What registers with `atexit` after
    `prepare_exit` is done before, and all threads have ended.
    """
    _deaths.append(number)


def prepare_exit() -> None:
    """To be called at the start of a command, so that `die_at_exit` comes after all clean-up."""
    atexit.unregister(die_if_due)
    atexit.register(die_if_due)


def die_of(number: int) -> None:
    """End this process at once, by the signal, or with its status where that has no effect."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container does not die of signals


_deaths: list[int] = []


def die_if_due() -> None:
    """Die of the signal of `die_at_exit`, if there was one; called when all else is done."""
    if _deaths:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
                stream.flush()
        die_of(_deaths[0])


@contextmanager
def finishing_first() -> Iterator[StopRequest]:
    """The first SIGINT or SIGTERM inside only sets the request; one more acts as it did before."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        kind = request.note(number)
        if kind == "first":
            # Not print: the signal may have interrupted one.
            _say(f"{request.signal.name}: finishing the images in flight; once more ends at once\n")
        elif kind == "again":
            previous = before[signal.Signals(number)]
            if not callable(previous):
                raise Stopped
            previous(number, frame)

    with _handler(stop):
        yield request


@contextmanager
def _handler(
    handle: Callable[[int, FrameType | None], None], keep: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """`handle` in place of the handlers of SIGNALS; restored at the end unless `keep()`.

    A signal that is ignored, as Ctrl-C by background commands of a shell script, stays ignored.
    Outside the main thread, where Python allows no handlers, nothing happens.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, previous in before.items():
            if previous not in (signal.SIG_IGN, None):  # None: not set from Python
                signal.signal(number, handle)
        yield
    finally:
        for number, previous in before.items():
            if previous not in (signal.SIG_IGN, None) and not keep():
                signal.signal(number, previous)


def _say(text: str) -> None:
    try:
        os.write(sys.stderr.fileno(), text.encode())
    except (OSError, ValueError, AttributeError):  # no stderr, or one that is no file
        pass
