"""Runs the rounds of a pilot, one after another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from expansion.advise.efforts import Effort
from expansion.advise.outcome import Outcome
from expansion.advise.pilot import Pilot
from expansion.advise.rounds import METRIC, Place, answer, standing, survivors
from expansion.common.config import load_yaml
from expansion.common.errors import require
from expansion.common.files import to_yaml, write_atomic
from expansion.metrics.comparison import Gain, compare
from expansion.study.estimate import Work
from expansion.study.runner import Runner
from expansion.study.settings import Arm
from expansion.study.steps import Study, work_left
from expansion.study.talk import say

EFFORT_FILE = "effort.yaml"


def keep_effort(pilot: Pilot) -> None:
    """Write down how large the pilot is: the same command goes on with the same."""
    values = {**dataclasses.asdict(pilot.effort), "repeats": list(pilot.effort.repeats)}
    values["cut_short"] = pilot.cut_short
    write_atomic(pilot.study.output_dir / EFFORT_FILE, to_yaml(values))


def begun_pilot(study: Study, path: Path) -> Pilot:
    """The pilot whose size `keep_effort` wrote down.

    Raises:
        InputError: The file was changed or is damaged.
    """
    values = dict(load_yaml(path).values)
    cut_short, repeats = values.pop("cut_short", False), values.pop("repeats", None)
    wanted = {"folds": int, "variants": int, "steps": float}
    fits = values.keys() == wanted.keys() and type(cut_short) is bool
    fits = fits and all(type(values[k]) is kind and values[k] > 0 for k, kind in wanted.items())
    fits = fits and isinstance(repeats, list) and bool(repeats)
    fits = fits and all(type(seeds) is int and seeds > 0 for seeds in repeats)
    require(fits, f"{path} is not as the adviser wrote it; bring it back, or remove the folder")
    return Pilot(study, Effort(**values, repeats=tuple(repeats)), cut_short)


def run_rounds(pilot: Pilot, runner: Runner, num_processes: int) -> Outcome:
    """Run all rounds, or as many as begin within the time; what has run before is left alone.

    Args:
        pilot: The pilot; fewer rounds than it has are kept as its effort.
        runner: Runs the commands.
        num_processes: Number of processes that work side by side.

    Raises:
        Failed: A command failed, or a signal stopped it.
    """
    begun = time.monotonic()
    alive: Sequence[Arm] = pilot.arms
    rounds: list[list[Place]] = []
    gains: dict[int, tuple[Arm, Gain]] = {}
    num_rounds = len(pilot.effort.repeats)
    for number in range(num_rounds):
        # Train the arms, and see where they stand.
        made = [arm for arm in alive if arm.method is not None]
        plural = "" if len(made) == 1 else "s"
        say(f"\nRound {number + 1} of {num_rounds}: {len(made)} arm{plural} with generated images")
        for stage in pilot.stages(number, alive, num_processes):
            say(stage.title)
            runner.run(stage)
        found = {i: pilot.predictions(arm, number) for i, arm in enumerate(alive)}
        places = standing(alive, found)
        base = next(place.arm for place in places if place.arm.method is None)
        for arm in made:
            gain = compare(found[alive.index(arm)], found[alive.index(base)], METRIC)
            gains[pilot.arms.index(arm)] = (arm, gain)
        # Who goes on; nobody does in the last round, and when the time for a further one is over.
        kept = survivors(places, number == 0)
        is_last = number == num_rounds - 1
        if not is_last and time.monotonic() - begun > 60 * pilot.config.minutes:
            is_last = work_left(pilot.stages(number + 1, kept, num_processes)) != Work()
        rounds.append([dataclasses.replace(p, goes_on=is_last or p.arm in kept) for p in places])
        _say_places(pilot, rounds[-1])
        if is_last:
            break
        alive = kept
    if len(rounds) < num_rounds:
        effort = dataclasses.replace(pilot.effort, repeats=pilot.effort.repeats[: len(rounds)])
        pilot = dataclasses.replace(pilot, effort=effort, cut_short=True)
        keep_effort(pilot)
    # The best arms with and without generated images.
    best = next(arm for arm in kept if arm.method is not None)
    base = next(arm for arm in kept if arm.method is None)
    said = answer(
        best, found[alive.index(best)], base, found[alive.index(base)], pilot.config.worth
    )
    ordered = sorted(gains.values(), key=lambda pair: -pair[1].mean)
    return Outcome(pilot, rounds, ordered, said, "")


def _say_places(pilot: Pilot, places: Sequence[Place]) -> None:
    for place in places:
        mark = "" if place.goes_on else "   given up"
        say(f"  {place.accuracy:5.1f} %  {pilot.title(place.arm)}{mark}")
