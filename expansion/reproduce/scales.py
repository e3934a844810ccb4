"""The scale of a reproduction: the papers' own, or smaller with the meaning of every setting kept.

A file `configs/papers/<scale>.yaml` says which dataset stands for all and which settings are the
scale's own. What a table sweeps keeps its value where that exists here; a window of guided steps
keeps its place in the schedule. Each change is noted, and the notes stand below the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import expand
from expansion.common.config import Source, load_yaml, option
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.reproduce.papers import FOLDER, composed
from expansion.reproduce.schema import DatasetFacts, check_counts
from expansion.study.estimate import Costs, costs_of
from expansion.study.settings import check_seeds
from expansion.study.steps import option_words

SCALES = ("tiny", "small", "paper")
SHOWN = ("num_inference_steps", "strength", "guidance_scale")  # whose changes are always noted
WINDOW, PERIOD = "guidance_step", "guidance_period"  # of DistDiff, counted in executed steps


@dataclass(frozen=True, kw_only=True)
class ScaleFile:
    """The keys of a scale's file."""

    title: str = option("", "what it is good for")
    dataset: str | None = option(None, "stands for all datasets; default: the tables' own")
    facts: dict | None = option(None, "numbers of that dataset")
    draw_per_seed: bool = option(False, "each seed has other real images")
    seeds: tuple[int, ...] = option((), "seeds of all tables; default: the tables' own")
    images: int | None = option(None, "images made of each real one; default: the tables' own")
    most_images: int | None = option(None, "most of them, where a table asks for a number")
    expand: dict | None = option(None, "options of expand.py in the place of the tables'")
    leave_out: tuple[str, ...] = option((), "options of expand.py that are left to the dataset")
    train: dict | None = option(None, "options of the trainings in the place of the tables'")
    leave_out_train: tuple[str, ...] = option((), "options of trainings that are left out")
    archs: dict | None = option(None, "network -> what stands for it")
    other_archs: str | None = option(None, "what stands for all other networks")
    prompts: bool = option(True, "write the prompts that sets ask for; else the template is taken")
    prompt_writer: str = option("", "module that writes them")
    training: dict | None = option(None, "what trains embeddings -> its options here")
    stand_ins: tuple[str, ...] = option(
        (),
        "what stand-ins without knowledge are made of: clip, image_unet; cells that need "
        "another are left out",
    )
    keep: str | None = option(None, "rule of expansion.filter in the place of the tables'")
    num_unlabeled: int | None = option(None, "unlabelled images that stand for the tables' own")
    paper_images: int | None = option(
        3000, "images of a set in its Frechet distance; default: all of the set"
    )
    benchmark: dict | None = option(None, "options of expansion.benchmark")
    device: str = option("", "what the costs below are those of")
    costs: dict | None = option(None, "operations of units of work, and operations per second")
    resolution: int = option(512, "side of the images, pixels")

    def __post_init__(self):
        check_seeds(self.seeds)
        check_counts(self, "images", "most_images", "num_unlabeled", "paper_images", "resolution")


@dataclass(frozen=True)
class Expansion:
    """How a set is made at a scale.

    Attributes:
        options: Options of expand.py.
        images: Images of each real one.
        notes: What the scale changed.
    """

    options: dict[str, Any]
    images: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """A scale: its name and what its file says."""

    name: str
    file: ScaleFile

    @property
    def is_own(self) -> bool:
        """Whether it is the papers' own, with their datasets and models."""
        return self.file.dataset is None

    def dataset(self, name: str) -> str:
        """The dataset that stands for another one."""
        return self.file.dataset or name

    def facts(self, own: DatasetFacts) -> DatasetFacts:
        """The numbers of a dataset, or of what stands for it."""
        if self.file.facts is None:
            return own
        where = f"configs/papers/{self.name}.yaml: facts"
        return composed(DatasetFacts, Source(self.file.facts, where))

    def seeds(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds of a table."""
        return self.file.seeds or own

    def arch(self, name: str) -> str:
        """The network that stands for another one."""
        return (self.file.archs or {}).get(name) or self.file.other_archs or name

    @property
    def costs(self) -> Costs:
        """What a unit of each kind of work takes on the scale's device."""
        return costs_of(self.file.costs or {})

    def expansion(
        self, dataset: str, method: str, given: Mapping[str, Any], images: int, swept: bool
    ) -> Expansion:
        """How a set of the paper is made at this scale.

        Args:
            dataset: The paper's dataset.
            method: Method of expand.py.
            given: Options of expand.py at the paper's scale.
            images: Images of each real one there.
            swept: Whether a table asks for that number, so that it is kept where it can be.
        """
        if self.is_own:
            return Expansion(dict(given), images)
        before = config_of(dataset, method, given)
        own = self.file.expand or {}
        left_out = [k for k in given if k in self.file.leave_out]
        options = {k: v for k, v in given.items() if k not in (*left_out, *own)} | own
        notes = [f"{k} {_text(given[k])} -> left out" for k in left_out]
        made = self._images(images, swept)
        notes += [f"{images} images of each real one -> {made}"] if made != images else []
        _raise_strength(self.file.dataset, method, options)
        if hasattr(before, WINDOW):
            _move_window(before, self.file.dataset, method, options, notes)
        after = config_of(self.file.dataset, method, options)
        notes += self._fewer_groups(method, after)
        for name in SHOWN:
            old, new = getattr(before, name), getattr(after, name)
            notes += [f"{method}: {name} {old:g} -> {new:g}"] if old != new else []
        return Expansion(options, made, tuple(notes))

    def training(self, given: Mapping[str, Any], images: int, made: int) -> tuple[dict, list[str]]:
        """Options of a training at this scale, and what it changed.

        Args:
            given: Those of the table.
            images: Images of each real one at the paper's scale.
            made: The same at this scale.
        """
        variants, notes = given.get("max_variants"), []
        if variants is not None and variants >= made:  # that is all of them
            notes = [f"the first {variants} variants -> {made}"] if made < images else []
            given = {k: v for k, v in given.items() if k != "max_variants"}
        if self.is_own:
            return dict(given), []
        own = self.file.train or {}
        left_out = {k: v for k, v in given.items() if k in self.file.leave_out_train}
        options = {k: v for k, v in given.items() if k not in (*left_out, *own)}
        notes += [f"{k} {_text(v)} -> left out" for k, v in left_out.items()]
        if "arch" in options:
            stand_in = self.arch(options["arch"])
            notes += [f"{options['arch']} -> {stand_in}"] if stand_in != options["arch"] else []
            options["arch"] = stand_in
        return {**options, **own}, notes

    def _fewer_groups(self, method: str, after: Any) -> list[str]:
        """The note on groups of prototypes that the images of a class are too few for."""
        facts = self.facts(DatasetFacts(classes=1, real=1, test=1))
        most = facts.real // facts.classes
        groups = getattr(after, "K", 0) if "local_prototype" in getattr(after, "targets", ()) else 0
        return [f"{method}: K {groups} -> {most}, the images of a class"] if groups > most else []

    def _images(self, images: int, swept: bool) -> int:
        if swept:
            return min(images, self.file.most_images or images)
        return self.file.images or images


def read_scale(name: str) -> Scale:
    """Read `configs/papers/<name>.yaml`."""
    source = load_yaml(FOLDER / f"{name}.yaml")
    source = dataclasses.replace(source, name=f"configs/papers/{name}.yaml")
    return Scale(name, composed(ScaleFile, source))


def config_of(dataset: str, method: str, options: Mapping[str, Any]) -> SamplerConfig:
    """The settings of a method that expand.py would take, with a dataset's own beneath them."""
    return _parsed(("-d", dataset, "--method", method, *option_words(options)))


@cache
def _parsed(words: tuple[str, ...]) -> SamplerConfig:
    return expand.parse(words)[1]


def _raise_strength(dataset: str, method: str, options: dict[str, Any]) -> None:
    """Raise a strength that would leave no step to run, to that of one step."""
    loose = {k: v for k, v in options.items() if k not in ("strength", WINDOW, PERIOD)}
    strength = options.get("strength")
    if strength is not None and strength < 1:
        loose |= {"optimize_targets": "none"} if WINDOW in options else {}
        steps = config_of(dataset, method, loose).num_inference_steps
        if int(steps * strength) == 0:
            options["strength"] = 1 / steps


def _move_window(
    before: Any, dataset: str, method: str, options: dict[str, Any], notes: list[str]
) -> None:
    """Put the window of guided steps where it was, as a share of the steps that are run.

    Args:
        before: The method's settings at the paper's scale.
        dataset: What stands for the dataset here.
        method: The method.
        options: Options of expand.py here.
        notes: What the scale changed.
    """
    options.pop(WINDOW, None)
    options.pop(PERIOD, None)
    if not before.energies:
        return
    loose = {**options, "optimize_targets": "none"}
    loose = {k: v for k, v in loose.items() if k not in ("energy", "group_size")}
    executed = config_of(dataset, method, loose).executed_steps
    step = round(before.guidance_step * executed / before.executed_steps)
    step = min(max(step, 1), executed)
    period = min(before.guidance_period, step)
    options |= {WINDOW: step, PERIOD: period}
    if (step, executed) != (before.guidance_step, before.executed_steps):
        notes.append(
            f"{WINDOW} {before.guidance_step} of {before.executed_steps} steps -> "
            f"{step} of {executed}"
        )
    if period != before.guidance_period:
        notes.append(f"{PERIOD} {before.guidance_period} -> {period}")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
