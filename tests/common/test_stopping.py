"""Ctrl-C and SIGTERM inside one process: what they become, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from expansion.common import stopping
from expansion.common.errors import InputError, run_command
from expansion.common.stopping import SIGNALS, Stopped, ending_at_once, finishing_first


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """A command that was stopped leaves its handlers to the rest of its process: here, to none."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(stopping, "_deaths", [])  # or the tests' own process would die at its end
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_without_a_signal_the_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit):
        run_command(lambda: 0)
    with finishing_first():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_request_and_its_repetition_the_same_one(number, capfd):
    with finishing_first() as stop:
        assert not stop()
        for _ in range(3):  # `timeout` and launchers do that
            send(number)
        assert stop() and stop.signal == number and stop.exit_status == 128 + number
    assert capfd.readouterr().err.count("finishing the images in flight") == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once(number, monkeypatch):
    monkeypatch.setattr(stopping, "REPETITION_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        with finishing_first() as stop:
            send(number)
            send(number)
    assert stop()


def test_within_a_command_the_second_signal_ends_the_command(monkeypatch, capfd):
    monkeypatch.setattr(stopping, "REPETITION_SECONDS", 0)

    def main():
        with finishing_first():
            send(signal.SIGINT)
            send(signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 143
    assert capfd.readouterr().err.splitlines()[1:] == [
        "stopped by SIGTERM; run the same command to go on"
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_one_line(number, status, capfd):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: send(number))
    assert end.value.code == status and stopping._deaths == [number]
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"stopped by {name}; run the same command to go on\n"


@pytest.mark.parametrize(
    ("status", "deaths"), [(130, [2]), (143, [15]), (0, []), (2, []), (None, [])]
)
def test_a_command_that_returns_a_signals_status_dies_of_that_signal(status, deaths):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: status)
    assert end.value.code == status and stopping._deaths == deaths


@pytest.mark.parametrize("error_class", [ImportError, InputError, PermissionError])
def test_a_stop_that_a_library_turns_into_another_error_is_still_a_stop(error_class, capfd):
    def main():
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise error_class("weights cannot be read") from error

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 143 and capfd.readouterr().err.startswith("stopped by SIGTERM;")


def test_a_repetition_does_not_disturb_the_clean_up():
    cleaned = []
    with pytest.raises(Stopped), ending_at_once():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            cleaned.append(True)
    send(signal.SIGINT)  # nor the end of the process
    assert cleaned


def test_outside_the_main_thread_nothing_happens():
    def work() -> bool:
        with ending_at_once(), finishing_first() as stop:
            return stop() or threading.current_thread() is threading.main_thread()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is False


def test_an_ignored_signal_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background
    try:
        with ending_at_once(), finishing_first() as stop:
            send(signal.SIGINT)
            assert not stop() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
