"""Commands as `expansion.study` makes them, for the sets and runs of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.data.datasets import ImageDataset
from expansion.reproduce.cells import Arm, Made, Place
from expansion.study.config import Settings, StudyConfig
from expansion.study.steps import Command, Study


@dataclass(frozen=True)
class Asked:
    """What a study is asked for: a set, or runs of some seeds.

    Attributes:
        made: The set; None for runs on real images alone.
        guide: File of the weights of its guide.
        extra: Options of expand.py that follow from where things lie; None for runs.
        seeds: Seeds of the runs.
    """

    made: Made | None = None
    guide: str | None = None
    extra: Mapping[str, Any] | None = None
    seeds: tuple[int, ...] = (1,)


def study_of(
    place: Place,
    words: Sequence[str],
    draw: int | None,
    asked: Asked,
    root: Path,
    resolution: int,
) -> Study:
    """A study that has a set or some runs.

    Args:
        place: The real images.
        words: Options that name them.
        draw: The seed whose images these are; None if all seeds have the same.
        asked: The set or the runs.
        root: Folder of everything.
        resolution: Side of the images, pixels.
    """
    made, num_train = asked.made, place.facts.real
    samplers: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}
    folders: dict[str, Path] = {}
    if made is not None:
        samplers = {made.key: made.method}
        own = {**made.own, **(asked.extra or {}), "num_images_per_prompt": made.images}
        options = {made.key: own}
        part = "" if draw is None else f"draw{draw}"
        folders = {made.key: root / "expanded" / place.dataset / part / made.name}
        num_train = num_train if asked.extra is None else made.num_images // made.images
    config = StudyConfig(dataset=place.dataset, seeds=asked.seeds, guide=asked.guide)
    return Study(
        settings=Settings(
            config=config,
            arms=(),
            samplers=samplers,
            train={},
            expand={},
            method_options=options,
            places={},
        ),
        dataset=ImageDataset(place.dataset, Path(), (), (), None, None),
        place=tuple(words),
        draw=draw,
        set_folders=folders,
        train={},
        expand={},
        method_options=options,
        model=None,
        output_dir=root,
        num_train=num_train,
        num_test=place.facts.test,
        resolution=resolution,
    )


def main_of(module: str) -> str:
    """What a command calls."""
    return f"{module}:main"


def with_seed(command: Command, seed: int) -> Command:
    """A training command of one seed, with another one."""
    *words, option, _ = command.arguments
    assert option == "--seeds"
    return dataclasses.replace(
        command,
        title=f"{command.title} seed {seed}",
        arguments=(*words, option, str(seed)),
        folders=(command.folders[0].parent / f"seed{seed}",),
    )


def at_true_size(command: Command, arm: Arm) -> Command:
    """The same with the work of a set that is smaller than n images of each real one."""
    if arm.made is None or "shots" not in arm.made.own:
        return command
    real = arm.place.facts.real
    share = (real + arm.made.num_images) / (real * (1 + arm.made.images))
    work = dataclasses.replace(command.work, trained=command.work.trained * share)
    return dataclasses.replace(command, work=work)
