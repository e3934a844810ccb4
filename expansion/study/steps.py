"""Turns the settings of a study into commands, in stages that follow each other."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import expand
import train_expand
import train_original
from expansion.classifier.recipe import Recipe, Schedule
from expansion.common.config import import_object
from expansion.common.errors import require
from expansion.common.files import is_done
from expansion.data.datasets import ImageDataset
from expansion.study.estimate import GUIDED, MORE_LEARNING, Work
from expansion.study.settings import LABELS, Arm, Settings
from expansion.study.worker import typed
from expansion.training.experiment import arm_name, run_dir
from expansion.training.options import TrainConfig, parse_training

GUIDE_OPTION = "encoder_weight_path"


@dataclass(frozen=True)
class Command:
    """A command of this project.

    Attributes:
        title: A few words for the user.
        call: The function that it runs, as "module:function".
        arguments: Its command line.
        folders: The folders that it fills: an expanded set, or one for each run.
        work: All its work, as if nothing were done yet.
        whole: Number of images of the expanded set, all shards together.
    """

    title: str
    call: str
    arguments: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    work: Work = Work()
    whole: int = 0

    @property
    def plain(self) -> str:
        """The command as a user would type it."""
        return shlex.join(["python", *typed(self.call, self.arguments)])

    def share_done(self) -> float:
        """The share of its work that is done already, 0 to 1; it is the same for all shards."""
        if self.work.runs:
            return sum(map(is_done, self.folders)) / len(self.folders)
        if not self.whole:
            return 0.0
        return min(1.0, len(list(self.folders[0].glob("*/*.png"))) / self.whole)


@dataclass(frozen=True)
class Stage:
    """Commands that need the results of earlier stages.

    Attributes:
        title: A few words for the user.
        commands: The commands.
        side_by_side: Whether they may run at the same time.
    """

    title: str
    commands: tuple[Command, ...]
    side_by_side: bool = True


@dataclass(frozen=True)
class Study:
    """A study with all its settings.

    The options leave out what the dataset's own file says.

    Attributes:
        settings: Settings of the study itself.
        dataset: The dataset of the real images.
        place: Options that name the real images in every script.
        draw: The seed whose images these are; None if all seeds have the same.
        set_folders: Name of a method or further set -> its folder, if it is not the usual one.
        train: Options of all trainings.
        expand: Options of all expansions.
        method_options: Method -> options of its expansion.
        model: Checkpoint of all methods; None leaves it to each method or the dataset.
        output_dir: Folder of the results.
        num_train: Number of images for training.
        num_test: Number of images for testing.
        resolution: Side of the generated images, pixels.
    """

    settings: Settings
    dataset: ImageDataset
    place: tuple[str, ...]
    draw: int | None
    set_folders: Mapping[str, Path]
    train: Mapping[str, Any]
    expand: Mapping[str, Any]
    method_options: Mapping[str, Mapping[str, Any]]
    model: str | None
    output_dir: Path
    num_train: int
    num_test: int
    resolution: int

    @property
    def checkpoint_dir(self) -> Path:
        return self.output_dir / "checkpoint"

    def num_images(self, method: str) -> int:
        """Number of images that a method makes of each real one."""
        own = self.settings.method_options.get(method, {})
        return own.get("num_images_per_prompt", self.settings.config.num_images_per_prompt)

    def factor(self, method: str) -> float:
        """Number of images that a method makes, divided by that of the real ones, about."""
        own = {**self.settings.expand, **self.settings.method_options.get(method, {})}
        return self.num_images(method) * own.get("expand_fraction", 1)

    def set_name(self, method: str) -> str:
        return f"{method}_{self.factor(method):.10g}x"

    def set_folder(self, method: str) -> Path:
        """The folder of a method's expanded set."""
        if method in self.set_folders:
            return self.set_folders[method]
        part = "" if self.draw is None else f"draw{self.draw}"
        return self.output_dir / "expanded" / part / self.set_name(method)

    @property
    def draws(self) -> list[Study]:
        """A study for each seed with images of its own; the study itself, if all have the same."""
        if not self.settings.config.draw_per_seed:
            return [self]
        return [
            dataclasses.replace(
                self.with_config(seeds=(seed,)),
                place=(*self.place, "--subset_seed", str(seed)),
                draw=seed,
            )
            for seed in self.settings.config.seeds
        ]

    def with_config(self, **changes: Any) -> Study:
        """The same with other fields of `settings.config`."""
        config = dataclasses.replace(self.settings.config, **changes)
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, config=config))

    @property
    def page(self) -> Path:
        return self.output_dir / "page.html"


def stages(study: Study, num_shards: int) -> list[Stage]:
    """All stages after the check of the images, in order.

    Args:
        study: The study.
        num_shards: Number of parts of every expansion, one for each process.
    """
    # Training on real images comes first: a guided method needs one of those classifiers.
    methods, arms, draws = study.settings.config.methods, study.settings.arms, study.draws
    real = [arm for arm in arms if arm.method is None]
    made = [arm for arm in arms if arm.method is not None]
    todo = [
        Stage(
            "classifiers on the real images alone",
            tuple(train_command(draw, arm) for arm in real for draw in draws),
        ),
        Stage(
            f"images with {', '.join(methods)}",
            tuple(
                command
                for method in methods
                for draw in draws
                for command in expand_commands(draw, method, num_shards)
            ),
        ),
        Stage(
            "classifiers on real + generated images",
            tuple(train_command(draw, arm) for arm in made for draw in draws),
        ),
        Stage("the result", tuple(result_commands(study)), side_by_side=False),
    ]
    require_own_folders(todo)
    return [stage for stage in todo if stage.commands]


def needs_guide(method: str) -> bool:
    """Whether a classifier guides the method."""
    config_class = import_object(expand.SAMPLERS[method][0])
    return GUIDE_OPTION in {field.name for field in fields(config_class)}


def expand_commands(study: Study, name: str, num_shards: int) -> list[Command]:
    """The commands of an expansion, one for each shard.

    Args:
        study: The study.
        name: Name of the method, or of a further set.
        num_shards: Largest number of shards.
    """
    # Options of all shards.
    own = {**study.expand, **study.method_options[name]}
    own.pop("num_images_per_prompt", None)
    folder, method = study.set_folder(name), study.settings.samplers[name]
    arguments = [*study.place, "--method", method]
    arguments += ["--num_images_per_prompt", str(study.num_images(name))]
    arguments += ["--output_dir", str(folder)]
    if study.model is not None:
        arguments += ["--pretrained_model_name_or_path", study.model]
    if needs_guide(method):
        own_guide = real_runs(study)[0] / "checkpoint.pth.tar"
        arguments += [f"--{GUIDE_OPTION}", study.settings.config.guide or str(own_guide)]
    arguments += option_words(own)
    # The work, as expand.py would cut it.
    title, images = study.set_name(name), round(study.num_train * study.factor(name))
    title += "" if study.draw is None else f" draw {study.draw}"
    parsed, method_config, _ = expand.parse(arguments)
    if isinstance(parsed.batch_size, int):  # there cannot be more shards than batches
        num_shards = min(num_shards, math.ceil(images / parsed.batch_size))
    rows = method_config.unet_rows_per_image(study.num_images(name))
    rows *= GUIDED if needs_guide(method) else 1.0
    work = Work(rows=rows * images, images=images, pixels=study.resolution**2 * images)
    work = Work().plus(work, 1 / num_shards)
    if num_shards == 1:
        return [Command(title, "expand:main", tuple(arguments), (folder,), work, images)]
    return [
        Command(
            f"{title} part {split + 1}",
            "expand:main",
            (*arguments, "--total_split", str(num_shards), "--split", str(split)),
            (folder,),
            work,
            images,
        )
        for split in range(num_shards)
    ]


def train_command(study: Study, arm: Arm) -> Command:
    """The command that trains an arm, with all seeds."""
    # Options, of which the script itself makes name, folder and recipe.
    seeds = study.settings.config.seeds
    arguments = [*study.place]
    if arm.method is not None:
        arguments += ["--exp", study.set_name(arm.method)]
        arguments += ["--expanded_dir", str(study.set_folder(arm.method))]
        arguments += ["--labels", arm.labels] if arm.labels != LABELS[0] else []
    arguments += option_words(arm.options)
    arguments += ["--checkpoint_dir", str(study.checkpoint_dir)]
    arguments += option_words(study.train)
    if seeds != TrainConfig.seeds:
        arguments += ["--seeds", *map(str, seeds)]
    name, folder, recipe = _of_script(study, arm, arguments)
    # The work of all seeds.
    schedule = Schedule(recipe, _images_per_epoch(study, arm, name))
    num_steps = len(schedule.batch_sizes)
    harder = 1.0 if arm.labels == LABELS[0] else MORE_LEARNING
    work = Work(
        trained=len(seeds) * harder * sum(schedule.batch_sizes),
        evaluated=len(seeds) * harder * study.num_test * num_steps / schedule.eval_steps,
        runs=len(seeds),
    )
    return Command(
        name or "Original",
        "train_original:main" if arm.method is None else "train_expand:main",
        tuple(arguments),
        tuple(folder / f"seed{seed}" for seed in seeds),
        work,
    )


def _images_per_epoch(study: Study, arm: Arm, name: str | None) -> int:
    """Real and generated images that an arm trains on; `name` is for the error."""
    if arm.method is None:
        return study.num_train
    made = study.num_images(arm.method)
    used = arm.options.get("max_variants") or made
    require(
        used <= made,
        f"{name}: max_variants {used} of a set of {made} variants of each image; give a larger "
        "num_images_per_prompt",
    )
    return round(study.num_train * (1 + study.factor(arm.method) * used / made))


def result_commands(study: Study) -> list[Command]:
    """The commands that make the table and, if it is wanted, the page."""
    config = study.settings.config
    columns = study.settings.columns
    table = (str(study.checkpoint_dir), "--table", *(("--columns", *columns) if columns else ()))
    commands = [Command("table", "parse_logs:main", table)]
    if config.page:
        # The judge of a set is not its guide, where there are several seeds.
        runs, draws = real_runs(study), study.draws
        judges = [str(runs[(number + 1) % len(runs)]) for number in range(len(draws))]
        sets = [[str(draw.set_folder(name)) for name in config.methods] for draw in draws]
        commands = [
            *(
                Command("recognised", "expansion.report.recognised:main", (judge, *folders))
                for judge, folders in zip(judges, sets, strict=True)
            ),
            *commands,
            Command(
                "page", "parse_logs:main", (*table, "--format", "html", "--output", str(study.page))
            ),
        ]
    return commands


def option_words(options: Mapping[str, Any]) -> list[str]:
    """The words of options on a command line; an option with the value None is left out."""
    words: list[str] = []
    for key, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, list | tuple):
            words += [f"--{key}", *map(str, value)]
        elif value is not None:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]
    return words


def work_left(todo: Sequence[Stage]) -> Work:
    """The work that the commands of all stages still have to do."""
    work = Work()
    for command in (command for stage in todo for command in stage.commands):
        work = work.plus(command.work, 1.0 - command.share_done())
    return work


def require_own_folders(todo: Sequence[Stage]) -> None:
    """Raise InputError for two arms that would fill the same folder."""
    titles: dict[Path, str] = {}
    for command in (command for stage in todo for command in stage.commands):
        for folder in command.folders if command.work.runs else ():
            require(
                folder not in titles,
                f"two arms are called {command.title}; give one of them a tag: {{..., tag: NAME}}",
            )
            titles[folder] = command.title


def real_runs(study: Study) -> tuple[Path, ...]:
    """The folders of the runs on real images alone, in the order of the seeds."""
    return train_command(study, Arm(None, LABELS[0], {})).folders


def recipe_of(study: Study) -> Recipe:
    """How the classifiers are trained on real images alone."""
    plain = train_command(study, Arm(None, LABELS[0], {}))
    return _of_script(study, Arm(None, LABELS[0], {}), plain.arguments)[2]


def _of_script(study: Study, arm: Arm, arguments: Sequence[str]) -> tuple[str | None, Path, Recipe]:
    """Name, folder and recipe of an arm, as its training script makes them of its command line."""
    unlabeled = "--unlabeled_dir" in arguments
    if arm.method is None:
        learning = train_original.SEMI_SUPERVISED if unlabeled else train_original.SUPERVISED
        config, recipe, _, own = parse_training(arguments, "", (), TrainConfig, lambda _: learning)
        name = arm_name(config.exp, config, recipe, own)
    else:
        config_class, learning = train_expand.TrainExpandConfig, train_expand.OBJECTIVES[arm.labels]
        if unlabeled and arm.labels == LABELS[0]:
            learning = train_expand.SEMI_SUPERVISED
        config, recipe, _, own = parse_training(arguments, "", (), config_class, lambda _: learning)
        name = train_expand.expanded_arm_name(config.exp, config, recipe, own)
    return name, run_dir(config, recipe, study.dataset, name), recipe
