"""Pieces of work: what fills a folder or file, what it needs, and whether it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from expansion.reproduce.cells import Cell, Made
from expansion.reproduce.scales import Scale
from expansion.study.estimate import Work
from expansion.study.steps import Command, Stage

SELECTED, EVALUATION = "selected.json", "evaluation.json"
STAGES = (
    "what is needed before",
    "classifiers on the real images alone",
    "embeddings",
    "images",
    "figures of the images",
    "images that are kept",
    "classifiers on real + generated images",
    "times",
)
BEFORE, REAL_RUNS, EMBEDDINGS, IMAGES, FIGURES, KEPT, RUNS, TIMES = range(len(STAGES))


@dataclass
class Node:
    """A piece of work: one folder or file, and the commands that fill it.

    Attributes:
        path: The folder or file.
        commands: One; of a set, one for each shard.
        stage: Number of its stage.
        needs: Paths of other nodes.
        is_finished: Whether it is there already.
        tables: Names of the tables that want it.
    """

    path: Path
    commands: tuple[Command, ...]
    stage: int
    needs: tuple[Path, ...]
    is_finished: Callable[[], bool]
    tables: list[str] = field(default_factory=list)

    @property
    def work(self) -> Work:
        total = Work()
        for command in self.commands:
            total = total.plus(command.work)
        return total


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose.

    Attributes:
        data_dir: Where named datasets lie.
        num_shards: Parts of every expansion.
        inception: File of Inception's weights, for FID.
        clip: CLIP in the place of ViT-B/32; None: the usual one, or a stand-in.
        datasets: Datasets of the papers whose cells are wanted; none: all.
    """

    data_dir: str = "data"
    num_shards: int = 1
    inception: str = "pt_inception-2015-12-05-6726825d.pth"
    clip: str | None = None
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True)
class WayPlan:
    """Where a figure of a cell comes from: runs, or sets, one for each seed; or a benchmark."""

    sources: tuple[Path, ...]


@dataclass
class Plan:
    """All work for some tables at a scale.

    Attributes:
        cells: Table -> its cells, each with the plans of its ways by label.
        problems: Table -> why it cannot be planned.
    """

    scale: Scale
    root: Path
    nodes: dict[Path, Node]
    cells: dict[str, list[tuple[Cell, dict[str, WayPlan]]]]
    problems: dict[str, str]

    def nodes_of(self, table: str) -> list[Node]:
        """What a table needs."""
        return [node for node in self.nodes.values() if table in node.tables]


def stages_of(nodes: Iterable[Node]) -> list[Stage]:
    """The stages of the commands of these nodes."""
    by_stage: dict[int, list[Command]] = {}
    for node in nodes:
        by_stage.setdefault(node.stage, []).extend(node.commands)
    return [
        Stage(STAGES[number], tuple(commands), side_by_side=number != TIMES)
        for number, commands in sorted(by_stage.items())
    ]


def is_complete(folder: Path, made: Made) -> bool:
    """Whether all images of a set are there, and its contact sheet, which comes last."""
    if not (folder / "contact_sheet.png").is_file():
        return False
    return len(list(folder.glob("*/*.png"))) >= made.num_images
