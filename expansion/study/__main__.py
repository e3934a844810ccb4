"""Does generating images help? The whole experiment on a folder of photos, by one command.

    python -m expansion.study path/to/photos
    python -m expansion.study digits --shots 2 --methods img2img dreamda --yes
    python -m expansion.study path/to/photos --config my_study.yaml --dry_run

It checks the photos, sets some apart for testing if there are no test images, trains classifiers on
the real images, generates more with each method, trains on both, and writes a page that says
whether that helped. Each step prints the command that it stands for. If it stops or fails, the same
command goes on. All results are in study/<dataset>.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from expansion.common.errors import GO_ON, run_command
from expansion.common.files import check_claim, check_outside, claim_folder
from expansion.study import choices, plan, talk
from expansion.study.config import StudyConfig, read_command_line, settle
from expansion.study.estimate import estimate
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
from expansion.study.steps import Stage, stages, work_left
from expansion.study.talk import say


def main(arguments: Sequence[str] | None = None) -> int:
    asked = read_command_line(sys.argv[1:] if arguments is None else arguments, __doc__)
    first = settle(asked, choices.scale_of(0)).config
    say("Step 1: look at the photos")
    photos = look_at(first)
    check = shlex.join(["python", "-m", "expansion.image_datasets", *photos.check])
    say(f"$ {check}\n{photos.describe()}\n")
    given = first.output_dir
    folder = Path(given or Path("study", photos.dataset.name))
    settings, output_dir = with_models(asked, photos, folder, given is not None, StudyConfig)
    check_outside(output_dir, {"the dataset": photos.dataset.root})
    runner, processes = new_runner(settings, photos, sys.stdout)
    with runner:
        try:
            opened = open_study(settings, photos, output_dir, runner, processes)
            return _run(opened, photos, runner)
        except Failed as failure:
            say(f"\n{'stopped' if failure.stopped else 'not finished'}; {GO_ON}")
            return failure.status


def _run(opened: Opened, photos: Photos, runner: Runner) -> int:
    """Everything that needs another process: estimate, question, work."""
    study, network = opened.study, opened.network
    config, output_dir = study.settings.config, study.output_dir
    todo = stages(study, opened.num_processes)
    identity = plan.identity_of(study, photos, network)
    check_claim(output_dir, StudyConfig.identity_file, identity, plan.REMEDY)
    # Say what it will do and take, and ask.
    say(talk.describe_plan(study, network, todo, identity["rehearsal"]))
    is_left = _say_estimate(opened, todo, runner)
    if config.dry_run:
        for number, stage in enumerate(todo, 1):
            commands = "\n".join(f"$ {command.plain}" for command in stage.commands)
            say(f"{talk.heading(number, todo, stage)}\n{commands}")
        return 0
    if is_left and not config.yes and not talk.agreed("Go on?"):
        say("Nothing was begun.")
        return 1
    # Do it.
    claim_folder(output_dir, StudyConfig.identity_file, identity, plan.REMEDY)
    for number, stage in enumerate(todo, 1):
        say(talk.heading(number, todo, stage))
        runner.run(stage)
    say(talk.describe_end(todo, identity["rehearsal"]))
    return 0


def _say_estimate(opened: Opened, todo: Sequence[Stage], runner: Runner) -> bool:
    """Say what is left to do, and the time and disk space for it; returns whether anything is left.

    Raises:
        InputError: The disk has too little room.
    """
    work = work_left(todo)
    if not (work.images or work.runs):
        say("All images and trainings are there already; the result is made again.")
        return False
    needed = estimate(work, costs_here(opened.study, runner), opened.num_processes)
    say(talk.describe_estimate(needed, work, opened.machine, opened.num_processes))
    require_room(opened.study.output_dir, needed.gigabytes)
    return True


if __name__ == "__main__":
    run_command(main)
