"""`reproduce list`: every table and figure of the papers, what it costs, and how far it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from expansion.common.tables import aligned
from expansion.reproduce.nodes import Plan
from expansion.reproduce.papers import Table, others, read_papers
from expansion.reproduce.results import TableResults
from expansion.reproduce.running import estimate_of

HEADER = (
    "item", "file or what shows it", "cells", "published", "U-Net rows", "hours", "GB", "measured",
    "what it is",
)  # fmt: skip
SIZES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def listing(tables: list[Table], plan: Plan, found: Mapping[str, TableResults]) -> str:
    """A line for each item of the papers, by paper in the order of their items.

    Args:
        tables: All tables.
        plan: Their common plan.
        found: Their results so far.
    """
    lines: dict[str, list[list[str]]] = {name: [] for name in read_papers()}
    for table in tables:
        lines[table.paper.name].append(_line(table, plan, found[table.name]))
    for paper, other in others(read_papers()):
        lines[paper].append([other.item, other.shown_by, *[""] * 6, other.title])
    return "\n\n".join(_part(name, each) for name, each in lines.items())


def total(plan: Plan) -> str:
    """The cost of all tables together, and what sharing saves."""
    nodes = list(plan.nodes.values())
    work, needed = estimate_of(nodes, plan, 1)
    apart = sum(estimate_of(plan.nodes_of(name), plan, 1)[1].seconds for name in plan.cells)
    return (
        f"all tables together: {short(work.rows)} U-Net rows, {work.images:,.0f} images, "
        f"{work.runs:,.0f} trainings, {needed.gigabytes:,.1f} GB, {needed.seconds / 3600:,.1f} "
        f"hours; one by one they would take {apart / 3600:,.1f}"
    )


def _line(table: Table, plan: Plan, found: TableResults) -> list[str]:
    published = str(len(table.published)) if table.published else "none"
    begin = [table.file.item, table.name, str(len(table.specs)), published]
    if found.problem:
        return [*begin, *[""] * 3, "cannot be planned", found.problem]
    work, needed = estimate_of(plan.nodes_of(table.name), plan, 1)
    done = sum(each.measured is not None for each in found.results.values())
    return [
        *begin,
        short(work.rows),
        f"{needed.seconds / 3600:,.1f}",
        f"{needed.gigabytes:,.1f}",
        f"{done} of {len(found.results)}",
        table.file.title,
    ]


def _part(paper: str, lines: list[list[str]]) -> str:
    lines.sort(key=lambda line: _order(line[0]))
    table = aligned([list(HEADER), *lines], left=(0, 1, 8))
    return f"{read_papers()[paper].file.title}\n{table}"


def _order(item: str) -> tuple[str, int, str]:
    match = re.match(r"(Table|Figs?\.|[a-zA-Z. ]+?) *(\d+)", item)
    kind, number = (match[1], int(match[2])) if match else ("z", 0)
    rank = "0" if kind == "Table" else "1" if kind.startswith("Fig") else "2"
    return rank, number, item


def short(number: float) -> str:
    """A number with three digits and k, M, G or T."""
    for sign, size in SIZES:
        if number >= size:
            return f"{number / size:.3g} {sign}"
    return f"{number:.0f}"
