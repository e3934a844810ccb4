"""Is it worth making images, and with which method? A pilot answers before hours are spent.

    python -m expansion.advise path/to/photos --minutes 30
    python -m expansion.advise mnist-few-shot --shots 2 --minutes 10 --yes

It checks the photos as expansion.study does, and tries out methods and strengths, with and without
RandAugment, by cross-validation on the training images; no test image is read. Losing arms are
given up early. The answer is one command with its cost and expected gain, or "do not expand". The
images of the pilot are the first of the advised study. If it stops, the same command goes on.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from expansion.advise.config import AdviseConfig
from expansion.advise.efforts import Effort, efforts_for
from expansion.advise.outcome import (
    Outcome,
    advised_command,
    advised_study,
    how_it_works,
    write_page,
    write_record,
)
from expansion.advise.pilot import Pilot
from expansion.advise.rounds import METRIC, Place, answer, standing
from expansion.common.config import load_yaml
from expansion.common.errors import GO_ON, InputError, require, run_command
from expansion.common.files import check_claim, check_outside, claim_folder, to_yaml, write_atomic
from expansion.metrics.comparison import Gain, compare
from expansion.study import choices, plan, talk
from expansion.study.config import Arm, read_command_line, settle
from expansion.study.estimate import Costs, Work, duration, estimate
from expansion.study.opening import (
    Opened,
    costs_here,
    new_runner,
    open_study,
    require_room,
    with_models,
)
from expansion.study.photos import Photos, look_at
from expansion.study.runner import Failed, Runner
from expansion.study.steps import stages, work_left
from expansion.study.talk import say

IDENTITY_FILE, EFFORT_FILE = "advice.yaml", "effort.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    asked = read_command_line(
        sys.argv[1:] if arguments is None else arguments, __doc__, AdviseConfig
    )
    first = settle(asked, choices.scale_of(0), study=AdviseConfig).config
    say("Step 1: look at the photos")
    photos = look_at(first)
    check = shlex.join(["python", "-m", "expansion.image_datasets", *photos.check])
    say(f"$ {check}\n{photos.describe()}\n")
    given = first.output_dir
    folder = Path(given or Path("advice", photos.dataset.name))
    settings, output_dir = with_models(asked, photos, folder, given is not None, AdviseConfig)
    check_outside(output_dir, {"the dataset": photos.dataset.root})
    runner, processes = new_runner(settings, photos, sys.stdout, brief=True)
    with runner:
        try:
            return _advise(
                open_study(settings, photos, output_dir, runner, processes), photos, runner
            )
        except Failed as failure:
            say(f"\n{'stopped' if failure.stopped else 'not finished'}; {GO_ON}")
            return failure.status


def _advise(opened: Opened, photos: Photos, runner: Runner) -> int:
    """Everything that needs another process: the size of the pilot, question, rounds, answer."""
    study, config = opened.study, opened.study.settings.config
    identity = plan.identity_of(study, photos, opened.network)
    identity["arms"] = [dataclasses.asdict(arm) for arm in study.settings.arms]
    check_claim(study.output_dir, IDENTITY_FILE, identity, plan.REMEDY)
    # How large it may be, and whether to begin.
    costs = costs_here(study, runner)
    pilot = Pilot(study, _effort(opened, photos, costs))
    _check_arms(pilot)
    needed = estimate(_work_of(pilot, opened.num_processes), costs, opened.num_processes)
    rehearsal = talk.REHEARSAL if identity["rehearsal"] else ""
    say(_description(pilot, opened, rehearsal))
    say(f"time: {duration(needed.seconds)}; disk space: {max(needed.gigabytes, 0.1):.1f} GB")
    require_room(study.output_dir, needed.gigabytes)
    if config.dry_run:
        for stage in pilot.stages(0, pilot.candidates, opened.num_processes):
            say("\n".join([f"\n{stage.title}", *(f"$ {c.plain}" for c in stage.commands)]))
        return 0
    if not config.yes and not talk.agreed("Go on?"):
        say("Nothing was begun.")
        return 1
    # Do it, and say what came of it.
    claim_folder(study.output_dir, IDENTITY_FILE, identity, plan.REMEDY)
    _keep_effort(pilot)
    outcome = _run_rounds(pilot, opened, runner)
    outcome = dataclasses.replace(outcome, cost=_cost(outcome, opened, costs), rehearsal=rehearsal)
    command = advised_command(outcome, identity["settings"])
    write_record(outcome, command)
    page = write_page(outcome, command) if config.page else None
    say(f"\n{outcome.headline}\n{outcome.expected}\n{outcome.cost}\n$ {command}")
    if page:
        say(f"How it was decided: {page}")
    return 0


def _effort(opened: Opened, photos: Photos, costs: Costs) -> Effort:
    """The effort that the pilot was begun with, else the largest that the time allows.

    Raises:
        InputError: The smallest takes longer.
    """
    study, config = opened.study, opened.study.settings.config
    path = study.output_dir / EFFORT_FILE
    if path.is_file():
        say(f"It goes on as it was begun: {path}")
        stored = load_yaml(path).values
        return Effort(**{**stored, "repeats": tuple(stored["repeats"])})
    labels = [record.label for record in photos.train]
    smallest = min(labels.count(label) for label in set(labels))
    require(
        smallest > 1,
        "a class has a single training image, and cross-validation needs two of each; add images",
    )
    seconds = 0.0
    for effort in efforts_for(smallest, config.num_images_per_prompt):
        work = _work_of(Pilot(study, effort), opened.num_processes)
        seconds = estimate(work, costs, opened.num_processes).seconds
        if seconds <= 60 * config.minutes:
            return effort
    raise InputError(
        f"--minutes {config.minutes:g}: the smallest pilot takes {duration(seconds)} here; give "
        f"--minutes {60 * seconds / 3600 + 1:.0f}, or fewer --methods"
    )


def _keep_effort(pilot: Pilot) -> None:
    values = {**dataclasses.asdict(pilot.effort), "repeats": list(pilot.effort.repeats)}
    write_atomic(pilot.study.output_dir / EFFORT_FILE, to_yaml(values))


def _check_arms(pilot: Pilot) -> None:
    require(
        bool(pilot.candidates), "arms: none has generated images, so there is nothing to choose"
    )


def _work_of(pilot: Pilot, num_shards: int) -> Work:
    """All work of the pilot that is left, if the arms that go on are those listed first."""
    work = Work()
    for number, count in enumerate(pilot.effort.alive(len(pilot.candidates))):
        todo = pilot.stages(number, pilot.candidates[:count], num_shards)
        work = work.plus(work_left(todo))
    return work


def _description(pilot: Pilot, opened: Opened, rehearsal: str) -> str:
    counts = pilot.effort.alive(len(pilot.candidates))
    rounds = ", then ".join(
        f"{count} arms {seeds} x" for count, seeds in zip(counts, pilot.effort.repeats, strict=True)
    )
    lines = [
        *([rehearsal] if rehearsal else []),
        f"classifier: {opened.network.why}",
        how_it_works(pilot),
        f"rounds: {rounds}",
        f"results: {pilot.study.output_dir}",
    ]
    return "\n".join(lines)


def _run_rounds(pilot: Pilot, opened: Opened, runner: Runner) -> Outcome:
    """Run all rounds, or as many as begin within the time."""
    begun = time.monotonic()
    alive: Sequence[Arm] = pilot.candidates
    counts = pilot.effort.alive(len(alive))
    rounds: list[list[Place]] = []
    gains: dict[int, tuple[Arm, Gain]] = {}
    cut_short = False
    for number in range(len(counts)):
        say(f"\nRound {number + 1} of {len(counts)}: {len(alive)} arms with generated images")
        for stage in pilot.stages(number, alive, opened.num_processes):
            say(f"{stage.title}")
            runner.run(stage)
        # Who is where, and who goes on.
        is_last = number == len(counts) - 1
        over = time.monotonic() - begun > 60 * pilot.study.settings.config.minutes
        cut_short = over and not is_last
        predictions = {i: pilot.predictions(arm, number) for i, arm in enumerate(alive)}
        survivors = 1 if is_last or cut_short else counts[number + 1]
        rounds.append(standing(alive, predictions, survivors))
        classic = standing(
            pilot.classic,
            {i: pilot.predictions(arm, number) for i, arm in enumerate(pilot.classic)},
            1,
        )
        base = pilot.predictions(classic[0].arm, number)
        for i, arm in enumerate(alive):
            gains[pilot.candidates.index(arm)] = (arm, compare(predictions[i], base, METRIC))
        _say_places(pilot, rounds[-1], classic)
        alive = [place.arm for place in rounds[-1] if place.goes_on]
        if cut_short:
            effort = dataclasses.replace(pilot.effort, repeats=pilot.effort.repeats[: number + 1])
            pilot = dataclasses.replace(pilot, effort=effort)
            _keep_effort(pilot)
            break
    best = alive[0]
    found = answer(best, pilot.predictions(best, number), classic[0].arm, base)
    ordered = sorted(gains.values(), key=lambda pair: -pair[1].mean)
    return Outcome(pilot, rounds, classic, ordered, found, "", cut_short)


def _say_places(pilot: Pilot, places: Sequence[Place], classic: Sequence[Place]) -> None:
    for place in (*classic, *places):
        mark = "" if place.goes_on or place.arm.method is None else "   given up"
        say(f"  {place.accuracy:5.1f} %  {pilot.title(place.arm)}{mark}")


def _cost(outcome: Outcome, opened: Opened, costs: Costs) -> str:
    """What the advised command costs, in words."""
    found = outcome.answer
    if not found.expand:
        return "Cost: one training."
    advised = advised_study(outcome.pilot, found.best, found.base)
    work = work_left(stages(advised, opened.num_processes))
    needed = estimate(work, costs, opened.num_processes)
    return (
        f"Cost: {work.images:,.0f} more images ({work.rows:,.0f} U-Net rows) and {work.runs:.0f} "
        f"trainings, {duration(needed.seconds)}."
    )


if __name__ == "__main__":
    run_command(main)
