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
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from expansion.common.config import Layers
from expansion.common.errors import GO_ON, require, run_command
from expansion.common.files import check_claim, check_outside, claim_folder
from expansion.diffusion.model_files import locate_model
from expansion.study import choices, jobs, plan, talk
from expansion.study.choices import Machine
from expansion.study.config import Settings, read_command_line, settle
from expansion.study.estimate import costs_of, estimate
from expansion.study.photos import Photos, look_at
from expansion.study.runner import Failed, Runner
from expansion.study.steps import Stage, Study, recipe_of, stages, work_left
from expansion.study.talk import say


def main(arguments: Sequence[str] | None = None) -> int:
    asked = read_command_line(sys.argv[1:] if arguments is None else arguments, __doc__)
    first = settle(asked, choices.scale_of(0)).config
    say("Step 1: look at the photos")
    photos = look_at(first)
    check = shlex.join(["python", "-m", "expansion.image_datasets", *photos.check])
    say(f"$ {check}\n{photos.describe()}\n")
    settings, output_dir = _with_models(asked, photos, first.output_dir)
    check_outside(output_dir, {"the dataset": photos.dataset.root})
    rehearsal = plan.is_rehearsal(settings, photos.dataset)
    small = rehearsal or photos.side <= choices.SMALL_SIDE
    processes = jobs.on_cpu(jobs.num_cores(), small)
    first_gpu = [{jobs.GPU: number} for number in settings.config.devices[:1]]
    one = first_gpu or processes[:1]
    with Runner(one, sys.stdout, talk.on_terminal(), photos.said) as runner:
        try:
            return _run(settings, photos, output_dir, runner, processes)
        except Failed as failure:
            say(f"\n{'stopped' if failure.stopped else 'not finished'}; {GO_ON}")
            return failure.status


def _with_models(asked: Layers, photos: Photos, given_dir: str | None) -> tuple[Settings, Path]:
    """The settings, with diffusion models that can be had, and the folder of results.

    Raises:
        InputError: A model is not available, and nobody agrees to rehearse with the tiny one.
    """
    folder = Path(given_dir or Path("study", photos.dataset.name))
    settings = plan.decide(asked, photos, plan.begun_with(folder))
    for model in plan.models_of(settings, photos.dataset):
        if not (choices.is_on_disk(model) or choices.can_be_downloaded(model)):
            error = choices.missing_model(model)
            if settings.config.yes or not talk.on_terminal():
                raise error
            say(f"{error}\n")
            if not talk.agreed("Rehearse with the tiny model now?"):
                raise error
            asked = plan.rehearsing(asked)
            settings = plan.decide(asked, photos, None)
            break
    if plan.is_rehearsal(settings, photos.dataset) and given_dir is None:
        folder = folder.with_name(f"{folder.name}-rehearsal")
        settings = plan.decide(asked, photos, plan.begun_with(folder))
    return settings, folder


def _run(
    settings: Settings,
    photos: Photos,
    output_dir: Path,
    runner: Runner,
    processes: list[dict[str, str]],
) -> int:
    """Everything that needs another process: choices, estimate, question, work."""
    # Choose what nobody has chosen, by what the machine has.
    probed = runner.ask("expansion.study.estimate:probe", choices.networks_to_ask_for(settings))
    machine = Machine(probed["gpus"], probed["weights"])
    network = choices.choose_network(settings, photos.side, len(photos.train), machine)
    gpus = jobs.on_gpus(machine.gpus, settings.config.devices)
    runner.set_processes(gpus or processes)
    study = plan.study_of(settings, photos, output_dir, network)
    todo = stages(study, len(gpus or processes))
    identity = plan.identity_of(study, photos, network)
    check_claim(output_dir, plan.IDENTITY_FILE, identity, plan.REMEDY)
    # Say what it will do and take, and ask.
    say(talk.describe_plan(study, network, todo, identity["rehearsal"]))
    is_left = _say_estimate(study, todo, runner, machine, len(gpus or processes))
    if settings.config.dry_run:
        for number, stage in enumerate(todo, 1):
            commands = "\n".join(f"$ {command.plain}" for command in stage.commands)
            say(f"{talk.heading(number, todo, stage)}\n{commands}")
        return 0
    if is_left and not settings.config.yes and not talk.agreed("Go on?"):
        say("Nothing was begun.")
        return 1
    # Do it.
    claim_folder(output_dir, plan.IDENTITY_FILE, identity, plan.REMEDY)
    for number, stage in enumerate(todo, 1):
        say(talk.heading(number, todo, stage))
        runner.run(stage)
    say(talk.describe_end(todo, identity["rehearsal"]))
    return 0


def _say_estimate(
    study: Study, todo: Sequence[Stage], runner: Runner, machine: Machine, num_processes: int
) -> bool:
    """Say what is left to do, and the time and disk space for it; returns whether anything is left.

    Raises:
        InputError: The disk has too little room.
    """
    work = work_left(todo)
    if not (work.images or work.runs):
        say("All images and trainings are there already; the result is made again.")
        return False
    recipe = recipe_of(study)
    model = plan.models_of(study.settings, study.dataset)[0]
    facts = runner.ask(
        "expansion.study.estimate:count",
        locate_model(model),
        study.resolution,
        recipe.arch,
        recipe.image_size,
        len(study.dataset.class_names),
    )
    needed = estimate(work, costs_of(facts), num_processes)
    say(talk.describe_estimate(needed, work, machine, num_processes))
    place = study.output_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    require(
        needed.gigabytes < free,
        f"{place} has only {free:.1f} GB free; make room, or give --output_dir on another disk",
    )
    return True


if __name__ == "__main__":
    run_command(main)
