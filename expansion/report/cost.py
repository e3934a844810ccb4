"""The cost of arms and expanded sets: seconds, U-Net rows, bytes on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expansion.report.sets import ExpandedSet
from expansion.report.verdict import Findings


@dataclass(frozen=True)
class ArmCost:
    """The cost of training an arm.

    Attributes:
        title: What the page calls the arm.
        steps: Optimiser steps of a run.
        num_runs: Number of runs.
        seconds: Seconds of all runs together; None if a run does not tell them.
    """

    title: str
    steps: str
    num_runs: int
    seconds: float | None


@dataclass(frozen=True)
class SetCost:
    """The cost of making an expanded set; what is not known is None."""

    name: str
    num_images: int
    seconds: float | None
    unet_rows: float | None
    gigabytes: float


def costs_of_arms(findings: Findings) -> list[ArmCost]:
    """One line per arm."""
    costs = []
    for arm in findings.arms:
        runs = arm.row.runs
        seconds = arm.row.numbers("seconds")
        total = sum(seconds) if len(seconds) == len(runs) else None
        costs.append(ArmCost(arm.title, arm.row.text("steps"), len(runs), total))
    return costs


def costs_of_sets(sets: Sequence[ExpandedSet]) -> list[SetCost]:
    """One line per expanded set."""
    return [SetCost(s.name, len(s.rows), s.seconds, s.unet_rows, s.num_bytes / 1e9) for s in sets]


def duration(seconds: float | None) -> str:
    """A duration in words, such as "5 min"; "?" if it is not known."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def size(gigabytes: float) -> str:
    """A size in words: in megabytes below 0.1 gigabytes."""
    return f"{1000 * gigabytes:.1f} MB" if gigabytes < 0.1 else f"{gigabytes:.2f} GB"
