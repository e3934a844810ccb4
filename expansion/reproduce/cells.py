"""What each cell of a table needs at a scale: a set, an arm of trainings, a figure of either."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import expand
import train_expand
from expansion.common.config import Source, compose, import_object
from expansion.common.errors import InputError
from expansion.generation.config import ExpandConfig
from expansion.reproduce.checks import (
    check_names_of_real,
    check_own,
    check_training,
    learning_of,
    method_config,
)
from expansion.reproduce.papers import Table, placed
from expansion.reproduce.scales import Scale
from expansion.reproduce.schema import REAL, CellSpec, DatasetFacts
from expansion.study.config import LABELS
from expansion.study.steps import needs_guide, option_words
from expansion.training.options import Learning, parse_training

# Training options that are part of a run folder's name by themselves.
NAMED = frozenset(("arch", "pretrained", "lr", "augment", "crop", "labels", "ema_decay"))
NAMED |= frozenset(train_expand.NAME_PARTS)
NO_PART = frozenset(("unlabeled_dir", "clip_model"))  # which follow from the others
OF_DEFAULTS = ("arch", "labels")  # options that others have their defaults by
SHORTER = {  # in names of folders
    "num_inference_steps": "steps",
    "pretrained_model_name_or_path": "",
    "prompt_template": "template-",
    "optimize_targets": "",
}
UNLABELED = "unlabeled"  # as `unlabeled_dir`: the dataset's own unlabelled images


@dataclass(frozen=True)
class Place:
    """Real images: a dataset and the options that choose some of its images.

    Attributes:
        dataset: Its name for the commands.
        facts: Its numbers.
        options: In every command.
    """

    dataset: str
    facts: DatasetFacts
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A set that is made for a cell.

    Attributes:
        place: The real images.
        method: Method of expand.py.
        options: Options of expand.py.
        images: Images of each real one.
        guide: What trains its guide; None if it has none.
        guide_name: What tells the guide from the paper's usual one; empty if it is that.
        prompts: Prompts that are written before.
        keep: Rule by which images are kept for training.
        training: Options of what trains its embeddings.
    """

    place: Place
    method: str
    options: Mapping[str, Any]
    images: int
    guide: Arm | None = None
    guide_name: str = ""
    prompts: str | None = None
    keep: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def own(self) -> dict[str, Any]:
        """The options that differ from the defaults of the method and the dataset."""
        defaults = _defaults_of_method(self.place.dataset, self.method)
        return {
            name: value
            for name, value in sorted(self.options.items())
            if not _is_default(name, value, defaults)
        }

    @cached_property
    def key(self) -> str:
        """Its name without the number of images: what makes it."""
        parts = [self.method, *_tagged(self.own)]
        parts += [f"{self.prompts}-prompts"] if self.prompts else []
        parts += _tagged(self.training)
        parts += [f"guide-{self.guide_name}"] if self.guide_name else []
        return "_".join(parts)

    @property
    def name(self) -> str:
        return f"{self.key}_{self.images}x"

    @property
    def num_images(self) -> int:
        """Number of its images."""
        facts, shots = self.place.facts, self.own.get("shots")
        real = facts.real if shots is None else min(facts.real, shots * facts.classes)
        return real * self.images

    @property
    def trained_by(self) -> str | None:
        """What trains its embeddings, a package of `baselines`, if it has any."""
        return getattr(import_object(expand.SAMPLERS[self.method][0]), "trained_by", None)


@dataclass(frozen=True)
class Arm:
    """A way to train: the options of its training commands, and its set if it has one."""

    place: Place
    train: Mapping[str, Any]
    made: Made | None = None

    @property
    def labels(self) -> str:
        return self.train.get("labels", LABELS[0])

    @cached_property
    def own(self) -> dict[str, Any]:
        """The options that differ from the defaults of the dataset and the network."""
        learning = learning_of(self.train, self.made is not None)
        chosen = {k: self.train[k] for k in OF_DEFAULTS if k in self.train}
        usual, own = (
            _defaults(self.place.dataset, learning, tuple(option_words(given)))
            for given in ({}, chosen)
        )
        return {
            name: value
            for name, value in self.train.items()
            if not _is_default(name, value, usual if name in OF_DEFAULTS else own)
        }

    def tag(self, of_scale: Mapping[str, Any]) -> str | None:
        """What else tells its run folder from others, beside the options that name it already.

        Args:
            of_scale: Options that all trainings of the scale have.
        """
        given = {k: v for k, v in self.own.items() if k not in NAMED and k not in NO_PART}
        own = {k: v for k, v in given.items() if of_scale.get(k, _ABSENT) != v}
        return "_".join(_tagged(own)) or None


@dataclass(frozen=True)
class Timing:
    """A timing of a method: the options of expansion.benchmark for it."""

    method: str
    options: Mapping[str, Any]


@dataclass
class Cell:
    """A cell at a scale.

    Attributes:
        row, column: Its place.
        spec: What the table's file says.
        ways: Label -> what is measured; several if the best of some counts.
        notes: What the scale changed.
        left_out: Why the scale has no such cell; empty if it has.
    """

    row: str
    column: str
    spec: CellSpec
    ways: dict[str, Arm | Made | Timing]
    notes: tuple[str, ...] = ()
    left_out: str = ""


_ABSENT = object()


def cells_of(table: Table, scale: Scale, datasets: Collection[str] = ()) -> list[Cell]:
    """The cells of a table at a scale.

    Args:
        table: The table.
        scale: The scale.
        datasets: Those whose cells are wanted; none: all.

    Raises:
        InputError: An option is unknown, or does not go with the others; names file and cell.
    """
    found = []
    for (row, column), spec in table.specs.items():
        if datasets and spec.dataset not in datasets:
            continue
        notes: dict[str, None] = {}
        where = f"{table.place}: row {row}, column {column}"
        try:
            check_own(table, row, column, where)
            ways = {
                label: _CellPlanner(table, scale, each, where, notes).way()
                for label, each in _ways(spec)
            }
        except InputError as error:  # a value that is out of its range does not know its place
            raise placed(error, where) from error
        found.append(Cell(row, column, spec, ways, tuple(notes)))
    return found


def _ways(spec: CellSpec) -> Iterator[tuple[str, CellSpec]]:
    """The cell itself, or each of those of which the best counts, by what tells it apart."""
    best_of = {} if spec.set == REAL else spec.best_of or {}
    for name, values in best_of.items():
        for value in values:
            options = {**(spec.options or {}), name: value}
            shown = f"{value:g}" if isinstance(value, float) else value
            yield f"{name} {shown}", replace(spec, options=options)
    if not best_of:
        yield "", spec


@dataclass(frozen=True)
class _CellPlanner:
    """Turns a cell of a table into what is measured for it at a scale.

    Attributes:
        table, scale: The table and the scale.
        spec: What the table's file says of the cell.
        where: The cell's place, for messages.
        notes: Gets what the scale changes.
    """

    table: Table
    scale: Scale
    spec: CellSpec
    where: str
    notes: dict[str, None]

    def way(self) -> Arm | Made | Timing:
        """What is measured for the cell."""
        spec, scale, paper = self.spec, self.scale, self.table.paper
        place = self._place()
        if spec.measure == "seconds":
            return self._timing()
        made, images = (None, 0) if spec.set == REAL else self._made(place)
        if spec.measure in ("fid", "mmd"):
            assert made is not None  # check_own
            if not scale.is_own:
                self._note(
                    "Inception, 3,000 images -> the classifier of real images, all of the set"
                )
            return made
        facts = paper.datasets[spec.dataset]
        train = {**(paper.file.train or {}), **(facts.train or {}), **(spec.train or {})}
        check_training(train, images, self.where)
        train, changes = scale.training(train, images, made.images if made else 0)
        self._note(*changes)
        return Arm(place, train, made)

    def _timing(self) -> Timing:
        spec = self.spec
        set_spec, options = self.table.paper.set_spec(spec.set, spec.dataset)
        steps = {**options, **(spec.options or {})}.get("num_inference_steps")
        given = {} if steps is None else {"num_inference_steps": steps}
        return Timing(set_spec.method, {**given, **(self.scale.file.benchmark or {})})

    def _place(self) -> Place:
        """The real images."""
        asked = self.spec.dataset
        facts = self.scale.facts(self.table.paper.datasets[asked])
        dataset = self.scale.dataset(asked)
        if dataset != asked:
            self._note(f"{asked} -> {dataset}")
        return Place(dataset, facts, facts.place or {})

    def _made(self, place: Place) -> tuple[Made, int]:
        """The set, and the number of images of each real one at the paper's scale."""
        spec, scale, paper = self.spec, self.scale, self.table.paper
        set_spec, own = paper.set_spec(spec.set, spec.dataset)
        given = {**own, **(spec.options or {})}
        config_class = method_config(set_spec, f"{self.where}: set {spec.set}")
        compose([ExpandConfig, config_class], [Source(given, f"{self.where}: options")])
        images = paper.datasets[spec.dataset].images if spec.images is None else spec.images
        scaled = scale.expansion(
            spec.dataset, set_spec.method, given, images, swept=spec.images is not None
        )
        self._note(*scaled.notes)
        guide, guide_name = None, ""
        if needs_guide(set_spec.method):
            guide, guide_name = self._guide(place)
        prompts = set_spec.prompts
        if prompts and not scale.file.prompts:
            self._note(f"{prompts} prompts -> the template")
            prompts = None
        keep = set_spec.keep
        if keep and scale.file.keep:
            self._note(f"{keep} -> {scale.file.keep}")
            keep = scale.file.keep
        made = Made(
            place=place,
            method=set_spec.method,
            options=scaled.options,
            images=scaled.images,
            guide=guide,
            guide_name=guide_name,
            prompts=prompts,
            keep=keep,
        )
        if made.trained_by:
            training = (scale.file.training or {}).get(made.trained_by, set_spec.training) or {}
            made = replace(made, training=training)
        return made, images

    def _guide(self, place: Place) -> tuple[Arm, str]:
        """The arm that is a set's guide, and what tells it from the paper's usual one."""
        file = self.table.paper.file
        usual = {**(file.train or {}), **(file.guide or {})}
        asked = {**usual, **(self.spec.guide or {})}
        check_training(asked, 0, f"{self.where}: guide")
        check_names_of_real(self.spec.guide or {}, asked, f"{self.where}: guide")
        options, changes = self.scale.training(asked, 0, 0)
        self._note(*(f"guide: {change}" for change in changes))
        plain = self.scale.training(usual, 0, 0)[0]
        other = {name: value for name, value in options.items() if plain.get(name) != value}
        arch = [_short(other.pop("arch"))] if "arch" in other else []
        return Arm(place, options), "-".join([*arch, *_tagged(other)])

    def _note(self, *changes: str) -> None:
        self.notes.update(dict.fromkeys(changes))


@cache
def _defaults_of_method(dataset: str, method: str) -> tuple[Any, ...]:
    """The settings of an expansion at their defaults."""
    return expand.parse(["-d", dataset, "--method", method])[:2]


@cache
def _defaults(dataset: str, learning: Learning, given: tuple[str, ...]) -> list[Any]:
    """The settings of a training with the options given, and else at their defaults."""
    words = ["-d", dataset, *given]
    config = train_expand.TrainExpandConfig
    run, recipe, _, own = parse_training(words, "", (), config, lambda _: learning)
    return [each for each in (run, recipe, own) if each is not None]


def _is_default(name: str, value: Any, defaults: Sequence[Any]) -> bool:
    """Whether an option has the value that it has anyway."""
    value = tuple(value) if isinstance(value, list) else value
    return any(getattr(each, name, _ABSENT) == value for each in defaults)


def _tagged(options: Mapping[str, Any]) -> list[str]:
    """Options as parts of a folder's name."""
    parts = []
    for name, value in sorted(options.items()):
        name = SHORTER.get(name, name)
        if isinstance(value, bool):
            parts.append(name if value else f"no-{name}")
        else:
            values: Sequence[Any] = value if isinstance(value, list) else [value]
            parts.append(name + "-".join(map(_short, values)))
    return parts


def _short(value: Any) -> str:
    """A value as part of a folder's name: of a path, its last part."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "._+-" else "-" for c in text)[:40].rstrip("-.")
