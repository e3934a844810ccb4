"""Hostile input ends in one line: no traceback, no hang, nothing written outside, no code run.

A small part of `python -m tests.rigs.fuzz`; and the rig must notice what it is there to notice.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from tests.rigs import fuzz
from tests.rigs.fuzz_rig import Sandbox, payload, try_input

pytestmark = pytest.mark.slow  # a minute of nonsense

COUNT = 200  # inputs of all kinds


def test_hostile_input_of_every_kind_ends_well():
    counts, traces = fuzz.fuzz(COUNT, seed=20)
    assert not traces, "\n\n".join(f"{name}\n{trace}" for name, trace in traces.items())
    assert all(found.total() for found in counts.values())
    whole = sum(counts.values(), start=Counter())
    assert whole["accepted"] > 20 and whole["InputError"] > 80


def not_a_number(place: Sandbox) -> None:
    int("x")


def a_bad_value(place: Sandbox) -> None:
    raise InputError("two\nlines")


def a_write(place: Sandbox) -> None:
    Path("../../../outside/images/new.png").write_bytes(b"x")


def a_change(place: Sandbox) -> None:
    (place.outside / "secret.txt").write_bytes(b"SENTINEL")


def a_pickle(place: Sandbox) -> None:
    pickle.loads(pickle.dumps(payload(place.mark)))


def a_wait(place: Sandbox) -> None:
    time.sleep(5)


@pytest.mark.parametrize(
    ("deed", "outcome"),
    [
        (lambda place: Path("inside").write_bytes(b"x") and None, "accepted"),
        (a_bad_value, "InputError"),
        (not_a_number, "traceback"),
        (a_write, "written outside"),
        (a_change, "written outside"),
        (a_pickle, "code run"),
        (a_wait, "hang"),
    ],
)
def test_the_rig_notices(deed, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.rigs.fuzz_rig.SECONDS", 0.2)
    sandbox, home = Sandbox(tmp_path), os.getcwd()
    found = try_input(lambda draw, place: lambda: deed(place), 0, sandbox)
    assert found.outcome == outcome and os.getcwd() == home
