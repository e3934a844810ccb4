"""Is it worth making images, and with which method? A pilot answers before hours are spent.

    python -m expansion.advise path/to/photos --minutes 30
    python -m expansion.advise mnist-few-shot --shots 2 --minutes 10 --yes

It checks the photos as expansion.study does, and tries out methods and strengths, with and without
RandAugment, by cross-validation on the training images; no test image is used. Losing arms are
given up early. The answer is one command with its cost and expected gain, or "do not expand". The
images of the pilot are the first of the advised study. If it stops, the same command goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from typing import cast

import expand
from expansion.advise.config import AdviseConfig
from expansion.advise.efforts import efforts_for
from expansion.advise.outcome import (
    Outcome,
    advised_command,
    advised_study,
    how_it_works,
    write_page,
    write_record,
)
from expansion.advise.pilot import Pilot
from expansion.advise.rounds import counts_of_rounds
from expansion.advise.running import EFFORT_FILE, begun_pilot, keep_effort, run_rounds
from expansion.common.config import import_object
from expansion.common.errors import InputError, require, run_command
from expansion.common.files import check_claim, claim_folder
from expansion.data.splits import fold_of
from expansion.study import plan, talk
from expansion.study.estimate import Costs, Work, duration, estimate
from expansion.study.opening import Opened, costs_here, require_room, run_study
from expansion.study.photos import Photos
from expansion.study.runner import Runner
from expansion.study.steps import require_own_folders, stages, work_left
from expansion.study.talk import say


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return run_study(given, __doc__, AdviseConfig, _advise)


def _advise(opened: Opened, photos: Photos, runner: Runner) -> int:
    """Everything that needs another process: the size of the pilot, question, rounds, answer."""
    study, config = opened.study, opened.study.settings.config
    identity = plan.identity_of(study, photos, opened.network)
    identity["arms"] = [dataclasses.asdict(arm) for arm in study.settings.arms]
    check_claim(study.output_dir, AdviseConfig.identity_file, identity, plan.REMEDY)
    # How large it may be, and whether to begin.
    costs = costs_here(study, runner)
    _check_arms(opened)
    pilot = _pilot_of(opened, photos, costs)
    _check_pilot(pilot, photos)
    needed = estimate(_work_of(pilot, opened.num_processes), costs, opened.num_processes)
    rehearsal = talk.REHEARSAL if identity["rehearsal"] else ""
    say(_description(pilot, opened, rehearsal))
    say(f"time: {duration(needed.seconds)}; disk space: {max(needed.gigabytes, 0.1):.1f} GB")
    require_room(study.output_dir, needed.gigabytes)
    if config.dry_run:
        for stage in pilot.stages(0, pilot.arms, opened.num_processes):
            say("\n".join([f"\n{stage.title}", *(f"$ {c.plain}" for c in stage.commands)]))
        return 0
    if not config.yes and not talk.agreed("Go on?"):
        say("Nothing was begun.")
        return 1
    # Do it, and say what came of it.
    claim_folder(study.output_dir, AdviseConfig.identity_file, identity, plan.REMEDY)
    keep_effort(pilot)
    outcome = run_rounds(pilot, runner, opened.num_processes)
    outcome = dataclasses.replace(outcome, cost=_cost(outcome, opened, costs), rehearsal=rehearsal)
    command = advised_command(outcome, identity["settings"])
    write_record(outcome, command)
    page = write_page(outcome, command) if config.page else None
    say(f"\n{outcome.headline}\n{outcome.expected}\n{outcome.cost}\n$ {command}")
    if page:
        say(f"How it was decided: {page}")
    return 0


def _pilot_of(opened: Opened, photos: Photos, costs: Costs) -> Pilot:
    """A pilot of the effort that it was begun with, else of the largest that the time allows.

    Raises:
        InputError: The smallest takes longer, or a class has too few images.
    """
    study = opened.study
    path = study.output_dir / EFFORT_FILE
    if path.is_file():
        say(f"It goes on as it was begun: {path}")
        return begun_pilot(study, path)
    contents = Counter(name for name, _ in {(r.class_name, r.pixels) for r in photos.train})
    name, smallest = min(contents.items(), key=lambda item: (item[1], item[0]))
    require(
        smallest > 1,
        f"class {name!r} has a single training image, and cross-validation needs two of each; "
        "add images",
    )
    config = cast(AdviseConfig, study.settings.config)
    seconds = 0.0
    fewest = min(study.num_images(name) for name in config.methods)
    for effort in efforts_for(smallest, fewest):
        pilot = Pilot(study, effort)
        work = _work_of(pilot, opened.num_processes)
        seconds = estimate(work, costs, opened.num_processes).seconds
        if seconds <= 60 * config.minutes:
            return pilot
    raise InputError(
        f"--minutes {config.minutes:g}: the smallest pilot takes {duration(seconds)} here; give "
        f"--minutes {60 * seconds / 3600 + 1:.0f}, or fewer --methods"
    )


def _check_arms(opened: Opened) -> None:
    """Raise InputError for arms that a pilot cannot compare."""
    study = opened.study
    require(
        bool(study.settings.config.methods),
        "methods: there is none, so there is nothing to choose; give one or more",
    )
    stages(study, opened.num_processes)  # two arms may not have the same folder
    for name in study.settings.config.methods:
        config_class = import_object(expand.SAMPLERS[study.settings.samplers[name]][0])
        require(
            not config_class.is_trained_before,
            f"methods: {name} needs a training of its own on the real images, which may have seen "
            "those that the pilot tests on; leave it out, and try it by python -m expansion.study",
        )


def _check_pilot(pilot: Pilot, photos: Photos) -> None:
    """Raise InputError if a part leaves nothing to train or test on, or arms share a folder."""
    require_own_folders(pilot.stages(0, pilot.arms, 1))
    count, seed = pilot.effort.folds, pilot.study.settings.config.subset_seed
    for number in range(1, count + 1):
        fold_of(photos.train, f"{number}/{count}", seed)


def _work_of(pilot: Pilot, num_shards: int) -> Work:
    """All work of the pilot that is left, if the arms that go on are those listed first."""
    work = Work()
    counts = counts_of_rounds(pilot.arms, len(pilot.effort.repeats))
    for number, count in enumerate(counts):
        alive = [*pilot.classic[: 1 if number else None], *pilot.candidates[:count]]
        work = work.plus(work_left(pilot.stages(number, alive, num_shards)))
    return work


def _description(pilot: Pilot, opened: Opened, rehearsal: str) -> str:
    counts = counts_of_rounds(pilot.arms, len(pilot.effort.repeats))
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
