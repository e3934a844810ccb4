"""The pilot: cross-validation of all arms on the real training images, as commands of a study.

The training images are dealt out to K parts (`--fold I/K` of the scripts). Each arm is trained K
times, each time on all parts but one and on the variants of their images, and tested on the part
that is left. The predictions for all parts together are those of one repeat; a repeat is a seed.
The test split is not used.

Methods that look at each image alone make one set, of all images, which the advised study goes on
with; of it, a training takes what comes from its own images. A method that learns from the set as
a whole (a guide, prototypes) makes a set for each part left out. One whose variants are made in
groups makes a set that the study can go on with only if the groups are whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import expand
from expansion.advise.config import AdviseConfig
from expansion.advise.efforts import Effort
from expansion.classifier.recipe import Schedule
from expansion.common.config import import_object
from expansion.metrics.predictions import PREDICTIONS_FILE, Predictions, joined
from expansion.study.settings import LABELS, Arm
from expansion.study.steps import Command, Stage, Study, expand_commands, recipe_of, train_command

FEWEST_STEPS = 20  # of a training


@dataclass(frozen=True)
class Pilot:
    """A pilot of a study's arms.

    Attributes:
        study: The study that may be advised; gives images, arms and all settings.
        effort: How much work the pilot puts into it.
        cut_short: Whether the time was over before all rounds were done; the effort is what was.
    """

    study: Study
    effort: Effort
    cut_short: bool = False

    @property
    def config(self) -> AdviseConfig:
        """The adviser's settings."""
        return cast(AdviseConfig, self.study.settings.config)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms."""
        return self.study.settings.arms

    @property
    def classic(self) -> tuple[Arm, ...]:
        """The arms without generated images."""
        return tuple(arm for arm in self.study.settings.arms if arm.method is None)

    @property
    def candidates(self) -> tuple[Arm, ...]:
        """The arms with generated images."""
        return tuple(arm for arm in self.study.settings.arms if arm.method is not None)

    def title(self, arm: Arm) -> str:
        """An arm in words, without the options that all arms with generated images have."""
        words = []
        if arm.method is not None:
            method = self.study.settings.samplers[arm.method]
            own = self.study.settings.method_options[arm.method] if method != arm.method else {}
            words += [method, *(f"{key} {value}" for key, value in own.items())]
        words += [f"labels {arm.labels}"] if arm.labels != LABELS[0] else []
        own = {k: v for k, v in arm.options.items() if arm.method is None or k not in self.shared}
        words += [str(v) if k == "augment" else f"{k} {v}" for k, v in own.items()]
        return ", ".join(words) or "real images as they are"

    @property
    def shared(self) -> dict[str, Any]:
        """The training options that all arms with generated images have."""
        first, *others = (arm.options for arm in self.candidates)
        return {k: v for k, v in first.items() if all(each.get(k) == v for each in others)}

    def stages(self, number: int, alive: Sequence[Arm], num_shards: int) -> list[Stage]:
        """The work of a round.

        Args:
            number: Number of the round, from 0.
            alive: Arms that take part.
            num_shards: Number of parts of every expansion.
        """
        seeds = self._seeds(number)
        real = [arm for arm in alive if arm.method is None]
        made = [arm for arm in alive if arm.method is not None]
        todo = [
            Stage("classifiers on real images alone", tuple(self._trainings(real, seeds))),
            Stage("images", tuple(self._expansions(made, num_shards)) if number == 0 else ()),
            Stage("classifiers on real + generated images", tuple(self._trainings(made, seeds))),
        ]
        return [stage for stage in todo if stage.commands]

    def predictions(self, arm: Arm, number: int) -> list[Predictions]:
        """The predictions for all training images, of each repeat so far.

        Args:
            arm: Its trainings of the rounds until `number` are finished.
            number: Number of the round, from 0.
        """
        seeds = range(1, self.effort.repeats[number] + 1)
        parts = [self._training(fold, arm, seeds).folders for fold in self._folds]
        return [
            joined([Predictions.load(Path(folder, PREDICTIONS_FILE)) for folder in folders])
            for folders in zip(*parts, strict=True)
        ]

    def _seeds(self, number: int) -> range:
        """The seeds that a round adds."""
        before = self.effort.repeats[number - 1] if number else 0
        return range(before + 1, self.effort.repeats[number] + 1)

    def _trainings(self, arms: Sequence[Arm], seeds: Sequence[int]) -> Iterator[Command]:
        for arm in arms:
            for number, fold in enumerate(self._folds, 1):
                command = self._training(fold, arm, seeds)
                title = f"{command.title} part {number}"
                yield dataclasses.replace(command, title=title)

    def _training(self, fold: Study, arm: Arm, seeds: Sequence[int]) -> Command:
        if arm.method is not None:  # the advised study may have added variants since
            most = arm.options.get("max_variants") or self.effort.variants
            options = {**arm.options, "max_variants": min(most, self.effort.variants)}
            arm = dataclasses.replace(arm, options=options)
        return train_command(fold.with_config(seeds=tuple(seeds)), arm)

    def _expansions(self, alive: Sequence[Arm], num_shards: int) -> Iterator[Command]:
        names = dict.fromkeys(arm.method for arm in alive)
        for name in names:
            if not learns_from_the_set(self.study, name):
                yield from expand_commands(self._whole, name, num_shards)
                continue
            for number, fold in enumerate(self._folds, 1):
                for command in expand_commands(fold, name, num_shards):
                    title = f"{command.title} without part {number}"
                    yield dataclasses.replace(command, title=title)

    @cached_property
    def _whole(self) -> Study:
        """The study of all images with as many variants as the pilot has, in the final folders."""
        study, names = self.study, self.study.settings.config.methods
        small = study.with_config(num_images_per_prompt=self.effort.variants, seeds=(1,))
        own = {
            name: {k: v for k, v in options.items() if k != "num_images_per_prompt"}
            for name, options in study.settings.method_options.items()
        }
        return dataclasses.replace(
            small,
            settings=dataclasses.replace(small.settings, method_options=own),
            set_folders={
                name: study.set_folder(name)
                if self._is_reused(name)
                else study.output_dir / "pilot" / "expanded" / study.set_name(name)
                for name in names
            },
        )

    def _is_reused(self, name: str) -> bool:
        """Whether the images of the pilot are the first ones of the set in the advised study."""
        if learns_from_the_set(self.study, name):
            return False
        (command, *_) = expand_commands(self.study, name, 1)
        size = expand.parse(command.arguments)[1].variants_per_group
        whole, first = self.study.num_images(name), self.effort.variants
        return size == 1 or whole == first or whole % size == first % size == 0

    @cached_property
    def _folds(self) -> list[Study]:
        """A study for each part that is left out."""
        whole, count = self._whole, self.effort.folds
        shared = {
            name: folder
            for name, folder in whole.set_folders.items()
            if not learns_from_the_set(whole, name)
        }
        held = math.ceil(whole.num_train / count)
        train = {**whole.train, "budget": "steps", "max_train_steps": self.num_steps}
        return [
            dataclasses.replace(
                whole,
                place=(*whole.place, "--fold", f"{number}/{count}"),
                set_folders=shared,
                train=train,
                output_dir=self.study.output_dir / "pilot" / f"part{number}of{count}",
                num_train=whole.num_train - held,
                num_test=held,
            )
            for number in range(1, count + 1)
        ]

    @cached_property
    def num_steps(self) -> int:
        """Optimiser steps of a training: a share of what real images alone take in the study."""
        schedule = Schedule(recipe_of(self.study), self.study.num_train)
        return max(FEWEST_STEPS, round(self.effort.steps * len(schedule.batch_sizes)))


def learns_from_the_set(study: Study, name: str) -> bool:
    """Whether the images of a method depend on other real images than their own."""
    method = study.settings.samplers[name]
    return bool(import_object(expand.SAMPLERS[method][0]).depends_on_dataset)


def plain_arm(study: Study) -> Arm:
    """The arm of real images alone, without further augmentation."""
    return next(a for a in study.settings.arms if a == Arm(None, LABELS[0], {}))
