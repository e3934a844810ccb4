"""Does generating images help? The whole experiment on a folder of photos, by one command.

    python -m expansion.study path/to/photos
    python -m expansion.study digits --shots 2 --methods img2img dreamda --yes
    python -m expansion.study path/to/photos --config my_study.yaml --dry_run
    python -m expansion.study digits --shots 2 --methods distdiff --sweep rho=1,10 K=1,3

It checks the photos, sets some apart for testing if there are no test images, trains classifiers on
the real images, generates more with each method, trains on both, and writes a page that says
whether that helped. Each step prints the command that it stands for. If it stops or fails, the same
command goes on. All results are in study/<dataset>.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from expansion.common.errors import run_command
from expansion.common.files import check_claim, claim_folder
from expansion.study import plan, talk
from expansion.study.estimate import estimate
from expansion.study.opening import Opened, costs_here, require_room, run_study
from expansion.study.photos import Photos
from expansion.study.runner import Runner
from expansion.study.settings import StudyConfig
from expansion.study.steps import Stage, stages, work_left
from expansion.study.talk import say


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return run_study(given, __doc__, StudyConfig, _run)


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
