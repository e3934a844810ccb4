"""A progress bar that a jump of the clock does not disturb."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm


class SteadyBar(tqdm):
    """tqdm measuring by the monotonic clock, so that no rate or remaining time is negative."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()
