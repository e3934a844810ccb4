"""From the figures of images to which of them are kept.

The steps, each on what the steps before it left: figures that are missing, bounds, copies, leaks,
twins, the top of each class, numbers per class; a bound that is topped up comes after the twins.
Quantiles are of all images of a class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expansion.common.errors import require, shown, unknown_name
from expansion.common.seeding import stable_seed
from expansion.common.texts import keyed_by, read_json
from expansion.selection.config import Bound, FilterConfig

COPY, LEAK = "copy of a training image", "copy of a test image"
TWIN = "copy of another image of the set"
NOT_TOP, BEYOND = "not among the top", "beyond the number of its class"
NOT_DRAWN = "not drawn"

Dropped = dict[str, str]  # file_name -> reason


@dataclass(frozen=True)
class Candidate:
    """An image of the set, with what was measured of it.

    Attributes:
        figures: Numbers by name; what is not known is not there.
        twin: The nearest image of the set, if it is near enough for a copy.
    """

    file_name: str
    class_name: str
    sha256: str
    figures: Mapping[str, float]
    is_copy: bool = False
    is_leak: bool = False
    twin: str | None = None


def select(
    candidates: Sequence[Candidate], config: FilterConfig, num_real: Mapping[str, int]
) -> Dropped:
    """Say of every image that is not kept why.

    Args:
        candidates: All images of the set.
        config: The rule.
        num_real: Class -> number of real images; names all classes.

    Raises:
        InputError: No image has a figure that the rule names, or a class loses all its images.
    """
    # The steps, in their order.
    names = [*(bound.name for bound in config.bounds), *filter(None, [config.by_figure])]
    _check_names(names, candidates)
    steps: list[Callable[[Sequence[Candidate]], Dropped]] = [lambda left: _unknown(left, names)]
    bounds = [_by_bound(bound, candidates, len(num_real)) for bound in config.bounds]
    topped_up = bounds.pop(0) if config.top_up else None  # the one of --at_least
    steps += bounds
    steps += [lambda left: {c.file_name: COPY for c in left if c.is_copy}] * config.no_copies
    steps += [lambda left: {c.file_name: LEAK for c in left if c.is_leak}] * config.no_leaks
    steps += [lambda left: _twins(left, candidates)] * config.no_twins
    if topped_up is not None:
        steps.append(_topped_up(topped_up, names[0], config.number))
    if config.top:
        top = dict.fromkeys(num_real, config.top)
        steps.append(lambda left: _beyond(_in_order(left, config), top, NOT_TOP))
    if config.per_class:
        steps.append(
            lambda left: _beyond(
                _in_order(left, config), numbers_per_class(config.per_class, left, num_real), BEYOND
            )
        )

    # Each looks at what is left.
    dropped: Dropped = {}
    for step in steps:
        dropped |= step([each for each in candidates if each.file_name not in dropped])
        _check_classes(candidates, dropped, num_real)
    return dropped


def draw_as_many(candidates: Sequence[Candidate], dropped: Dropped, seed: int) -> Dropped:
    """As many of each class as another selection keeps, drawn at random from all.

    Args:
        candidates: All images of the set.
        dropped: What the other selection does not keep.
        seed: Of the draw.
    """
    numbers = Counter(c.class_name for c in candidates if c.file_name not in dropped)
    return _beyond(_at_random(candidates, "control", seed), numbers, NOT_DRAWN)


def numbers_per_class(
    per_class: str, left: Iterable[Candidate], num_real: Mapping[str, int]
) -> dict[str, int]:
    """How many images of each class may be kept.

    With "inverse", each class is filled up to one number of real + generated images: what the
    class with the fewest reaches, but more than the real images of any class, so that each keeps
    one or more.

    Args:
        per_class: "equal", "inverse", a number for all, or the path of a JSON file
            {class: number}; a class that it leaves out keeps all.
        left: The images that there are.
        num_real: Class -> number of real images; names all classes.
    """
    there = Counter(each.class_name for each in left)
    if per_class == "equal":
        return dict.fromkeys(num_real, min(there[name] for name in num_real))
    if per_class == "inverse":
        fewest = min(there[name] + number for name, number in num_real.items())
        full = max(fewest, 1 + max(num_real.values()))
        return {name: full - number for name, number in num_real.items()}
    if per_class.isdecimal():
        require(int(per_class) > 0, f"--per_class {per_class}: give a number from 1")
        return dict.fromkeys(num_real, int(per_class))
    given = keyed_by(num_real, read_json(Path(per_class), dict), per_class)
    unknown = [str(name) for name in given if name not in num_real]
    require(
        not unknown,
        f"--per_class {per_class}: no class is called {shown(unknown, 3)}; there is "
        f"{shown(num_real)}",
    )
    odd = [name for name, number in given.items() if type(number) is not int or number < 1]
    require(not odd, f"--per_class {per_class}: class {shown(odd, 3)}: give a number from 1")
    return {name: given.get(name, there[name]) for name in num_real}


def _check_names(names: Iterable[str], candidates: Sequence[Candidate]) -> None:
    known = sorted({name for each in candidates for name in each.figures})
    for name in names:
        if name not in known:
            raise unknown_name("figure", name, known)


def _check_classes(
    candidates: Sequence[Candidate], dropped: Dropped, num_real: Mapping[str, int]
) -> None:
    """Raise InputError, naming the classes, if nothing is left of some."""
    left = {each.class_name for each in candidates if each.file_name not in dropped}
    empty = [name for name in num_real if name not in left]
    if not empty:
        return
    reasons = Counter(dropped[c.file_name] for c in candidates if c.class_name == empty[0])
    why = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    require(False, f"no image is left of class {shown(empty)} ({why}); ask for less")


def _unknown(left: Iterable[Candidate], names: Iterable[str]) -> Dropped:
    names = list(names)
    lacking = ((c, [name for name in names if name not in c.figures]) for c in left)
    return {each.file_name: f"no {absent[0]}" for each, absent in lacking if absent}


def _by_bound(
    bound: Bound, candidates: Iterable[Candidate], num_classes: int
) -> Callable[[Sequence[Candidate]], Dropped]:
    number = bound.value / num_classes if bound.is_guess else bound.value
    values: dict[str, list[float]] = defaultdict(list)
    for each in candidates:
        if bound.name in each.figures:
            values[each.class_name].append(each.figures[bound.name])
    limits = {
        name: float(np.quantile(found, bound.value)) if bound.is_quantile else number
        for name, found in values.items()
    }

    def fails(each: Candidate) -> bool:
        value, limit = each.figures[bound.name], limits[each.class_name]
        return value < limit if bound.is_least else value > limit

    return lambda left: {each.file_name: bound.reason for each in left if fails(each)}


def _topped_up(
    by_bound: Callable[[Sequence[Candidate]], Dropped], figure: str, number: int
) -> Callable[[Sequence[Candidate]], Dropped]:
    """A bound's step that spares the best by its figure where a class would keep fewer images."""

    def step(left: Sequence[Candidate]) -> Dropped:
        dropped = by_bound(left)
        kept = Counter(each.class_name for each in left if each.file_name not in dropped)
        for each in sorted(left, key=lambda c: (-c.figures[figure], c.file_name)):
            if each.file_name in dropped and kept[each.class_name] < number:
                kept[each.class_name] += 1
                del dropped[each.file_name]
        return dropped

    return step


def _twins(left: Iterable[Candidate], candidates: Sequence[Candidate]) -> Dropped:
    """All but the first of each group whose images are linked as copies, directly or not."""
    first = {each.file_name: each.file_name for each in candidates}

    def group(name: str) -> str:
        while first[name] != name:
            first[name] = name = first[first[name]]
        return name

    for each in candidates:
        if each.twin is not None:
            pair = sorted((group(each.file_name), group(each.twin)))
            first[pair[1]] = pair[0]
    seen: set[str] = set()
    dropped = {}
    for name in sorted(each.file_name for each in left):
        if group(name) in seen:
            dropped[name] = TWIN
        seen.add(group(name))
    return dropped


def _in_order(left: Sequence[Candidate], config: FilterConfig) -> list[Candidate]:
    """The best first; of equals the first by file name."""
    if config.by is None:
        return _at_random(left, "selection", config.seed)
    sign = 1 if config.by.startswith("-") else -1
    return sorted(left, key=lambda c: (sign * c.figures[config.by_figure], c.file_name))


def _at_random(left: Sequence[Candidate], title: str, seed: int) -> list[Candidate]:
    return sorted(left, key=lambda each: stable_seed(title, seed, each.file_name))


def _beyond(ordered: Iterable[Candidate], numbers: Mapping[str, int], reason: str) -> Dropped:
    """The images after the first so many of each class."""
    seen: Counter[str] = Counter()
    dropped = {}
    for each in ordered:
        seen[each.class_name] += 1
        if seen[each.class_name] > numbers[each.class_name]:
            dropped[each.file_name] = reason
    return dropped
