"""Options of `python -m expansion.filter`, and the bounds that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.datasets import DEFAULT_DATASET

GUESS = "1/C"  # as a bound: what an even guess among the classes gives each of them


@dataclass(frozen=True)
class Bound:
    """A figure of an image that must be at least, or at most, a value.

    Attributes:
        name: Of the figure.
        value: A number, or a share of the images of the class if `is_quantile`.
        is_least: Whether the value is the least; else it is the most.
        is_guess: Whether the value is still to be divided by the number of classes.
    """

    name: str
    value: float
    is_quantile: bool
    is_least: bool
    is_guess: bool = False

    @classmethod
    def parse(cls, text: str, is_least: bool) -> Bound:
        """From NAME=NUMBER, NAME=qSHARE or NAME=1/C; raises InputError for anything else."""
        name, equals, value = text.partition("=")
        if name and value == GUESS:
            return cls(name, 1.0, False, is_least, is_guess=True)
        is_quantile = value.startswith("q")
        try:
            number = float(value.removeprefix("q"))
        except ValueError:
            number = math.nan
        kind = "least" if is_least else "most"
        require(
            bool(name and equals) and math.isfinite(number),
            f"--at_{kind} {text}: give NAME=VALUE, as own_probability=0.5 or train_distance=q0.05",
        )
        require(
            not is_quantile or 0 <= number <= 1,
            f"--at_{kind} {text}: a quantile is a share of the class, from q0 to q1",
        )
        return cls(name, number, is_quantile, is_least)

    @property
    def _limit(self) -> str:
        if self.is_guess:
            return GUESS
        return f"quantile {self.value:g} of its class" if self.is_quantile else f"{self.value:g}"

    @property
    def words(self) -> str:
        """What it asks for."""
        return f"{self.name} at {'least' if self.is_least else 'most'} {self._limit}"

    @property
    def reason(self) -> str:
        """Why an image is dropped by it."""
        return f"{self.name} {'below' if self.is_least else 'above'} {self._limit}"


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Settings of the command."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    exp: str | None = option(
        None, "the set: its name, as in <data_dir>/<dataset>_expansion/<exp>, or its folder"
    )
    test_fraction: float | None = option(
        None,
        "share of each class for testing, of a dataset without a test split; default: as the set "
        "says",
    )
    output: str | None = option(
        None, "selection file to write (.json); default: selected.json in the set's folder"
    )
    at_least: tuple[str, ...] = option(
        (),
        "keep images whose figure is no less: NAME=NUMBER, NAME=q0.05 for a quantile of the images "
        "of each class, or NAME=1/C for one over the number of classes; names: as in "
        "evaluation.jsonl, and the method's own in the manifest",
    )
    at_most: tuple[str, ...] = option((), "keep images whose figure is no more, likewise")
    no_copies: bool = option(False, "drop copies of training images")
    no_leaks: bool = option(False, "drop copies of test images")
    no_twins: bool = option(
        False, "of images of the set that are copies of each other, keep the first by file name"
    )
    by: str | None = option(
        None, "the figure that --top and --per_class go by, largest first; -NAME: smallest first"
    )
    top: int | None = option(None, "keep so many images of each class, the first ones --by")
    per_class: str | None = option(
        None,
        "how many images of a class are kept: equal, as many as the smallest class has left; "
        "inverse, the fewer the more real images it has, for as many real + generated images of "
        "each as there can be; a number; or a JSON file {class: number}. The first ones --by, else "
        "at random",
    )
    top_up: bool = option(
        False,
        "where --at_least leaves a class fewer than --per_class N, take the best of the others by "
        "the same figure",
    )
    random_control: bool = option(
        False,
        "write a second selection, <output>_random.json, of as many images of each class drawn at "
        "random from all: what a selection must beat",
    )
    seed: int = option(0, "of what is drawn at random")
    on_incomplete: str = option(
        "fail", "what a set that lacks images does: fail, or use what is there",
        choices=("fail", "use"),
    )  # fmt: skip
    on_error: str = option("fail", "what an unreadable image does", choices=("fail", "skip"))
    dry_run: bool = option(False, "print what would be kept, and stop")

    def __post_init__(self):
        require(self.exp is not None, "which set? give --exp NAME, as in <dataset>_expansion/NAME")
        require(self.top is None or self.top > 0, f"top {self.top}: give 1 or more")
        require(self.seed >= 0, f"seed {self.seed}: give 0 or more")
        require(self.top is None or self.by is not None, "--top: of which figure? give --by NAME")
        require(
            self.by is None or self.top is not None or self.per_class is not None,
            f"--by {self.by} says which images come first; give --top or --per_class too",
        )
        require(self.by is None or self.by_figure != "", "--by: give the name of a figure")
        require(
            not self.top_up or (self.number is not None and len(self.at_least) == 1),
            "--top_up: up to how many, and by which figure? give --per_class N and one --at_least",
        )
        require(
            self.output is None or self.output.endswith(".json"),
            f"--output {self.output}: give a name that ends in .json",
        )
        require(
            self.rule != "",
            "which images? give --at_least, --at_most, --no_copies, --no_leaks, --no_twins, --top "
            "or --per_class",
        )

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """All bounds."""
        least = [Bound.parse(text, True) for text in self.at_least]
        return (*least, *(Bound.parse(text, False) for text in self.at_most))

    @property
    def number(self) -> int | None:
        """What `per_class` gives every class, if it is a number."""
        is_number = self.per_class is not None and self.per_class.isdecimal()
        return int(self.per_class) if is_number else None

    @property
    def by_figure(self) -> str:
        """The figure of `by`, without the sign; "" where there is none."""
        return (self.by or "").removeprefix("-")

    @property
    def rule(self) -> str:
        """All that decides, in words."""
        size = "smallest" if (self.by or "").startswith("-") else "largest"
        order = f"by {size} {self.by_figure}" if self.by else f"at random (seed {self.seed})"
        parts = [bound.words for bound in self.bounds]
        parts += ["no copies"] * self.no_copies + ["no leaks"] * self.no_leaks
        parts += ["no twins"] * self.no_twins
        parts += [f"{self.top} of each class {order}"] if self.top else []
        if self.per_class:
            parts.append(f"number per class: {Path(self.per_class).name}, {order}")
        parts += ["topped up by the figure"] * self.top_up
        return "; ".join(parts)
