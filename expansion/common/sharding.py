"""Dividing an expansion among processes: fixed units of work, unit j to shard j mod n."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from expansion.common.errors import InputError, require

Item = TypeVar("Item")


def make_units(
    items: Sequence[Item], batch_size: int, group_of: Callable[[Item], Hashable] | None = None
) -> list[list[Item]]:
    """Join consecutive items to units of `batch_size`, or fewer where a group would be cut.

    The units do not depend on who computes them, so neither do the floating-point results.

    Args:
        items: In order, those of a group side by side.
        batch_size: Largest number of items of a unit.
        group_of: What the items of a group, which are computed together, have in common; default:
            each stands alone.

    Raises:
        InputError: A group is larger than a unit may be.
    """
    require(batch_size > 0, f"--batch_size {batch_size}: give a positive number")
    groups = [[item] for item in items]
    if group_of is not None:
        groups = [list(members) for _, members in itertools.groupby(items, group_of)]
    units: list[list[Item]] = []
    for group in groups:
        require(
            len(group) <= batch_size,
            f"--batch_size {batch_size}: {len(group)} variants of a real image are computed "
            f"together; give {len(group)} or more",
        )
        if not units or len(units[-1]) + len(group) > batch_size:
            units.append([])
        units[-1] += group
    return units


def take_shard(units: Sequence[Item], split: int, total_split: int) -> list[Item]:
    """Units of one shard. The shards of any `total_split` partition the units."""
    return list(units[split::total_split])


class Shard(NamedTuple):
    """Which part of the units a process computes; `origin` says who decided it, if not options."""

    split: int
    total_split: int
    origin: str = ""

    def __str__(self) -> str:
        return f"shard {self.split} of {self.total_split}{self.origin and f' ({self.origin})'}"


def resolve_shard(
    split: int | None, total_split: int | None, environ: Mapping[str, str] = os.environ
) -> Shard:
    """Which shard this process computes.

    Options win; then `accelerate launch` (RANK, WORLD_SIZE); then a SLURM array; else one shard.

    Raises:
        InputError: `split` is not in 0 .. total_split-1, or only `split` is given.
    """
    require(
        (split is None) == (total_split is None),
        f"--split {split} and --total_split {total_split}: give both or neither",
    )
    try:
        shard = Shard(split, total_split) if split is not None else _shard_of(environ)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the environment's process number cannot be read ({error}); give --split and "
            "--total_split"
        ) from error
    require(
        shard.total_split > 0 and 0 <= shard.split < shard.total_split,
        f"--split {shard.split} with --total_split {shard.total_split}: split counts from 0 and "
        "must be below it",
    )
    return shard


def _shard_of(environ: Mapping[str, str]) -> Shard:
    """The shard that the process's launcher gave it; raises KeyError or ValueError."""
    if "WORLD_SIZE" in environ:
        return Shard(int(environ["RANK"]), int(environ["WORLD_SIZE"]), "from WORLD_SIZE and RANK")
    if "SLURM_ARRAY_TASK_COUNT" in environ:
        first = int(environ.get("SLURM_ARRAY_TASK_MIN", 0))
        stride = int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
        return Shard(
            (int(environ["SLURM_ARRAY_TASK_ID"]) - first) // stride,
            int(environ["SLURM_ARRAY_TASK_COUNT"]),
            "from the SLURM array; with --split 0 --total_split 1 each task makes all images",
        )
    return Shard(0, 1)
