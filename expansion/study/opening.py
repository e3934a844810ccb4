"""What comes before the work: the models that can be had, the machine, and what its work costs."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.common.config import Layers
from expansion.common.errors import GO_ON, require
from expansion.common.files import check_outside
from expansion.diffusion.model_files import locate_model
from expansion.study import choices, jobs, plan, talk
from expansion.study.choices import Machine, Network
from expansion.study.config import read_command_line, settle
from expansion.study.estimate import Costs, costs_of
from expansion.study.photos import Photos, look_at
from expansion.study.runner import Failed, Runner
from expansion.study.settings import Settings, StudyConfig
from expansion.study.steps import Study, recipe_of
from expansion.study.talk import say


@dataclass(frozen=True)
class Opened:
    """A study whose settings are complete.

    Attributes:
        study: The study.
        network: Its classifier.
        machine: The machine.
        num_processes: Number of processes that work side by side.
    """

    study: Study
    network: Network
    machine: Machine
    num_processes: int


def _with_models(
    asked: Layers, photos: Photos, folder: Path, is_given: bool, study: type[StudyConfig]
) -> tuple[Settings, Path]:
    """The settings, with diffusion models that can be had, and the folder of results.

    Args:
        asked: What was typed and what the `--config` files hold.
        photos: The images.
        folder: Folder of the results.
        is_given: Whether the user gave it; else a rehearsal takes another one.
        study: The class of the settings.

    Raises:
        InputError: A model is not available, and nobody agrees to rehearse with the tiny one.
    """
    settings = plan.decide(asked, photos, plan.begun_with(folder, study), study)
    for model in plan.models_of(settings, photos.dataset):
        if not (choices.is_on_disk(model) or choices.can_be_downloaded(model)):
            error = choices.missing_model(model)
            if settings.config.yes or not talk.on_terminal():
                raise error
            say(f"{error}\n")
            if not talk.agreed("Rehearse with the tiny model now?"):
                raise error
            asked = plan.rehearsing(asked)
            settings = plan.decide(asked, photos, None, study)
            break
    if plan.is_rehearsal(settings, photos.dataset) and not is_given:
        folder = folder.with_name(f"{folder.name}-rehearsal")
        settings = plan.decide(asked, photos, plan.begun_with(folder, study), study)
    return settings, folder


def run_study(
    arguments: Sequence[str],
    description: str,
    study: type[StudyConfig],
    work: Callable[[Opened, Photos, Runner], int],
) -> int:
    """Read the command line, look at the images, open the study, and do the work; exit status.

    Args:
        arguments: The command line.
        description: What `--help` says of the command.
        study: The class of the settings.
        work: All the rest; it may raise `Failed`.
    """
    asked = read_command_line(arguments, description, study)
    first = settle(asked, choices.scale_of(0), study=study).config
    say("Step 1: look at the photos")
    photos = look_at(first)
    check = shlex.join(["python", "-m", "expansion.image_datasets", *photos.check])
    say(f"$ {check}\n{photos.describe()}\n")
    given = first.output_dir
    folder = Path(given or Path(study.top_folder, photos.dataset.name))
    settings, output_dir = _with_models(asked, photos, folder, given is not None, study)
    check_outside(output_dir, {"the dataset": photos.dataset.root})
    # One process looks at the machine; `_open` adds the others.
    rehearsal = plan.is_rehearsal(settings, photos.dataset)
    small = rehearsal or photos.side <= choices.SMALL_SIDE
    processes = jobs.on_cpu(jobs.num_cores(), small)
    one = [{jobs.GPU: number} for number in settings.config.devices[:1]] or processes[:1]
    with Runner(one, sys.stdout, talk.on_terminal(), photos.said, study.brief) as runner:
        try:
            opened = _open(settings, photos, output_dir, runner, processes)
            return work(opened, photos, runner)
        except Failed as failure:
            say(f"\n{'stopped' if failure.stopped else 'not finished'}; {GO_ON}")
            return failure.status


def _open(
    settings: Settings,
    photos: Photos,
    output_dir: Path,
    runner: Runner,
    processes: list[dict[str, str]],
) -> Opened:
    """Choose what nobody has chosen, by what the machine has, and put the study together.

    Args:
        settings: All settings.
        photos: The images.
        output_dir: Folder of the results.
        runner: Is given as many processes as there are GPUs, else `processes`.
        processes: Environments of the processes on a CPU.
    """
    probed = runner.ask("expansion.study.estimate:probe", choices.networks_to_ask_for(settings))
    machine = Machine(probed["gpus"], probed["weights"])
    network = choices.choose_network(settings, photos.side, len(photos.train), machine)
    gpus = jobs.on_gpus(machine.gpus, settings.config.devices)
    runner.set_processes(gpus or processes)
    study = plan.study_of(settings, photos, output_dir, network)
    return Opened(study, network, machine, len(gpus or processes))


def costs_here(study: Study, runner: Runner) -> Costs:
    """What a unit of each kind of work takes on the first device."""
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
    return costs_of(facts)


def require_room(output_dir: Path, gigabytes: float) -> None:
    """Raise InputError if the disk of a folder, which need not exist yet, has too little room."""
    place = output_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    require(
        gigabytes < free,
        f"{place} has only {free:.1f} GB free; make room, or give --output_dir on another disk",
    )
