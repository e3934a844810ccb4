"""Where the time of an expansion goes: code names its phases, a benchmark measures them.

Phases: load, encode, denoise, guide, decode, write, and idle (waiting for another thread). Without
a `PhaseClock` naming them costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

_clock: PhaseClock | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What happens inside belongs to the phase `name`, or to the one it is already part of."""
    if _clock is None:
        yield
        return
    with _clock.measure(name):
        yield


class PhaseClock:
    """Seconds per phase while `running`; one clock at a time.

    Args:
        synchronize: Waits for the device, so that work counts where it was asked for.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None):
        self.synchronize = synchronize
        self.seconds: MutableMapping[str, Any] = Counter()  # of the thread that runs the clock
        self.beside: MutableMapping[str, Any] = (
            Counter()
        )  # of other threads, which run at the same time
        self.total = 0.0
        self._open = threading.local()
        self._lock = threading.Lock()
        self._thread = threading.get_ident()

    @contextmanager
    def running(self) -> Iterator[PhaseClock]:
        """Phases named inside are measured."""
        global _clock
        if _clock is not None:
            raise RuntimeError("another PhaseClock is running")
        _clock, self._thread = self, threading.get_ident()
        begun = time.perf_counter()
        try:
            yield self
        finally:
            self.synchronize()
            self.total += time.perf_counter() - begun
            _clock = None

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time inside to `name`, unless an outer phase of this thread counts it."""
        if getattr(self._open, "name", None) is not None:
            yield
            return
        in_main = threading.get_ident() == self._thread
        if in_main:
            self.synchronize()
        self._open.name = name
        begun = time.perf_counter()
        try:
            yield
        finally:
            if in_main:
                self.synchronize()
            seconds = time.perf_counter() - begun
            self._open.name = None
            with self._lock:
                (self.seconds if in_main else self.beside)[name] += seconds

    @property
    def unaccounted(self) -> float:
        """Seconds of the running thread that no phase names."""
        return max(0.0, self.total - sum(self.seconds.values()))
