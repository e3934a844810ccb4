"""Time by phase."""

from __future__ import annotations

import threading

import pytest

from expansion.common import phases
from expansion.common.phases import PhaseClock, phase


@pytest.fixture
def at(monkeypatch):
    """Function that sets the clock's reading, in seconds."""
    reading = [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: reading[0])

    def set_to(seconds: float) -> None:
        reading[0] = seconds

    return set_to


def test_seconds_go_to_the_outermost_phase_of_each_thread(at):
    def work_beside():
        with phase("write"):
            at(9.0)

    clock = PhaseClock()
    with clock.running():
        at(1.0)
        with phase("guide"):
            at(2.0)
            with phase("denoise"):
                at(4.0)
        with phase("denoise"):
            at(7.0)
            thread = threading.Thread(target=work_beside)
            thread.start()
            thread.join()
        at(10.0)
    assert dict(clock.seconds) == {"guide": 3.0, "denoise": 5.0}
    assert dict(clock.beside) == {"write": 2.0}
    assert (clock.total, clock.unaccounted) == (10.0, 2.0)


def test_phases_outside_a_clock_are_free_and_clocks_end_with_an_exception():
    waits: list[int] = []
    clock = PhaseClock(lambda: waits.append(1))
    with pytest.raises(KeyError), clock.running(), phase("decode"):
        raise KeyError
    assert clock.seconds["decode"] > 0 and len(waits) == 3
    with phase("decode"):
        pass
    assert len(waits) == 3
    with PhaseClock().running(), pytest.raises(RuntimeError, match="another"):
        PhaseClock().running().__enter__()
