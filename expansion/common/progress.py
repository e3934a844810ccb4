"""Progress bars: one that a jump of the clock does not disturb, and that of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class SteadyBar(tqdm):
    """tqdm measuring by the monotonic clock, so that no rate or remaining time is negative."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


@contextmanager
def training_bar(
    title: str, hidden: bool, part: str, total: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar over optimiser steps, with the time left and the last test accuracy.

    Args:
        title: Of the run.
        hidden: Not shown, as in all processes but one.
        part: Of the run, such as a stage; "" for one that has none.
        total: Number of steps.

    Yields:
        To be called after every step with its number and the last evaluation. Steps that an
        earlier run did count as done, not as quick.
    """
    title = f"{title}, {part}" if part else title
    with SteadyBar(desc=title, total=total, unit="step", disable=hidden or None) as bar:

        def progress(step: int, row: Mapping[str, float]) -> None:
            if bar.n == 0:
                bar.initial = bar.n = step - 1
            bar.update(step - bar.n)
            if "test_accuracy" in row:
                bar.set_postfix(test=f"{row['test_accuracy']:.1f}%", refresh=False)

        yield progress
