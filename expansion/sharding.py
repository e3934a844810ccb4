"""Dividing an expansion among processes: fixed units of work, unit j to shard j mod n."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from expansion.config import require
from expansion.errors import InputError

Item = TypeVar("Item")


def make_units(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Cut `items` into consecutive groups of `batch_size`; the last may be smaller.

    The groups do not depend on who computes them, so neither do the floating-point results.
    """
    require(batch_size > 0, f"--batch_size {batch_size}: give a positive number")
    return [list(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]


def take_shard(units: Sequence[Item], split: int, total_split: int) -> list[Item]:
    """Units of one shard. The shards of any `total_split` partition the units."""
    return list(units[split::total_split])


def resolve_shard(
    split: int | None, total_split: int | None, environ: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Which shard this process computes: (split, total_split).

    Options win; then `accelerate launch` (RANK, WORLD_SIZE); then a SLURM array; else one shard.

    Raises:
        InputError: `split` is not in 0 .. total_split-1, or only `split` is given.
    """
    require(
        (split is None) == (total_split is None),
        f"--split {split} and --total_split {total_split}: give both or neither",
    )
    try:
        if split is None and total_split is None:
            if "WORLD_SIZE" in environ:
                split, total_split = int(environ["RANK"]), int(environ["WORLD_SIZE"])
            elif "SLURM_ARRAY_TASK_COUNT" in environ:
                first = int(environ.get("SLURM_ARRAY_TASK_MIN", 0))
                stride = int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
                split = (int(environ["SLURM_ARRAY_TASK_ID"]) - first) // stride
                total_split = int(environ["SLURM_ARRAY_TASK_COUNT"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the environment's process number cannot be read ({error}); give --split and "
            "--total_split"
        ) from error
    split, total_split = split or 0, 1 if total_split is None else total_split
    require(
        total_split > 0 and 0 <= split < total_split,
        f"--split {split} with --total_split {total_split}: split counts from 0 and must be "
        "below it",
    )
    return split, total_split
