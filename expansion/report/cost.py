"""What arms and sets cost: seconds, U-Net rows, bytes on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expansion.report.sets import ExpandedSet
from expansion.report.verdict import Findings


@dataclass(frozen=True)
class ArmCost:
    """Training of an arm.

    Attributes:
        steps: Optimiser steps of a run.
        seconds: Of all runs together; None where a run does not say it.
    """

    title: str
    steps: str
    num_runs: int
    seconds: float | None


@dataclass(frozen=True)
class SetCost:
    """Making of a set; None: not known."""

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
    """As people say it; "?" where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def size(gigabytes: float) -> str:
    """Gigabytes, with megabytes where they are few."""
    return f"{1000 * gigabytes:.1f} MB" if gigabytes < 0.1 else f"{gigabytes:.2f} GB"
