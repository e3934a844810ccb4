"""Reproduce tables of the papers: measured values beside the published ones.

    python -m expansion.reproduce list
    python -m expansion.reproduce distdiff/table4 --scale tiny --yes
    python -m expansion.reproduce distdiff/table3 dreamda/table7 --dry_run
    python -m expansion.reproduce all --jobs jobs.txt

A table is a file of configs/papers; the name of a paper and "all" stand for several. Work that
tables share is done once. Whatever is there already is left alone, so the same command goes on
after a stop. --scale tiny tries out every step within minutes on a CPU; small compares methods on
MNIST digits; paper is the papers' own. docs/papers.md says more.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.common.config import option
from expansion.common.errors import InputError, require, run_command, unknown_name
from expansion.common.files import check_claim, claim_folder
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import load_dataset
from expansion.reproduce.listing import listing, short, total
from expansion.reproduce.nodes import Node, Plan, PlanOptions, stages_of
from expansion.reproduce.outputs import report, write_outputs
from expansion.reproduce.papers import Table, read_tables
from expansion.reproduce.planning import plan_tables
from expansion.reproduce.records import check_records, keep_records
from expansion.reproduce.results import TableResults, results_of
from expansion.reproduce.running import (
    environs,
    estimate_of,
    missing_nodes,
    run_nodes,
    stopped,
    write_jobs,
)
from expansion.reproduce.scales import SCALES, Scale, read_scale
from expansion.study import talk
from expansion.study.estimate import Estimate, duration
from expansion.study.opening import require_room
from expansion.study.runner import Failed
from expansion.study.talk import say

IDENTITY_FILE = "reproduce.yaml"
REMEDY = "give another --output_dir, or remove the folder"
NOT_DECIDING = ("title", "seeds", "device", "costs", "benchmark")  # of a scale's file
LIST = "list"


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Settings of the command."""

    scale: str = option("paper", "tiny, small, or the papers' own", choices=SCALES)
    output_dir: str = option("reproduce", "folder of all results, one folder for each scale")
    data_dir: str = option("data", "where named datasets lie")
    datasets: tuple[str, ...] = option(
        (), "only the cells of these datasets, as the papers' files name them; default: all"
    )
    devices: tuple[str, ...] = option((), "numbers of the GPUs to use; default: all")
    shards: int | None = option(
        None, "parts that each set is made in; default: one for each process, with --jobs one"
    )
    inception: str = option(
        PlanOptions.inception, "file of Inception's weights for FID; see docs/measures.md"
    )
    clip: str | None = option(
        None,
        "CLIP in the place of ViT-B/32: hub id or folder; default at the scale tiny: one with "
        "random weights, at small: cells that need one are left out",
    )
    jobs: str | None = option(
        None, "write the commands that are missing to this file, one per line, and stop"
    )
    dry_run: bool = option(False, "print the plan and its commands, and stop")
    yes: bool = option(False, "do not ask before the work begins")

    def __post_init__(self):
        require(self.shards is None or self.shards > 0, f"shards {self.shards}: give 1 or more")
        require(
            self.jobs is None or not self.dry_run,
            "jobs and dry_run: give one of them; a dry run writes nothing",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    names, config = parse(sys.argv[1:] if arguments is None else arguments)
    scale = read_scale(config.scale)
    root = Path(config.output_dir, scale.name)
    options = PlanOptions(
        data_dir=os.path.normpath(config.data_dir),
        num_shards=config.shards or 1,
        inception=os.path.normpath(config.inception),
        clip=config.clip and os.path.normpath(config.clip),
        datasets=config.datasets,
    )
    if LIST in names:
        return _list(scale, root, options)
    tables = _with_cells(read_tables(names), config.datasets)
    check_claim(root, IDENTITY_FILE, _identity(scale), REMEDY)
    # Processes are looked for where work begins: their number decides the shards.
    idle = config.dry_run or config.jobs is not None
    processes = [] if idle else environs(config.devices, scale.file.dataset is not None)
    shards = config.shards or max(1, len(config.devices or processes))
    shards = 1 if config.jobs is not None and config.shards is None else shards
    options = dataclasses.replace(options, num_shards=shards)
    plan = plan_tables(tables, scale, root, options)
    check_records(plan, config.jobs)
    missing = missing_nodes(plan)
    num_devices = max(1, len(processes or config.devices))
    needed = _say_plan(plan, missing, num_devices, options.inception)
    if config.jobs is not None or config.dry_run:
        return _show_commands(plan, missing, config.jobs)
    require_room(root, needed.gigabytes)
    _require_data(plan, options.data_dir)
    if missing and not config.yes and not talk.agreed("Go on?"):
        say("Nothing was begun.")
        return 1
    _claim(plan, missing)
    try:
        failed = run_nodes(plan, missing, processes)
    except Failed as failure:
        return stopped(failure)
    found = [results_of(table, plan, failed) for table in tables]
    return _say_results(found, root, scale)


def _claim(plan: Plan, missing: Sequence[Node], jobs: str | None = None) -> None:
    """Make the folder this scale's, and keep how the missing work is done."""
    claim_folder(plan.root, IDENTITY_FILE, _identity(plan.scale), REMEDY)
    keep_records(plan, missing, jobs)


def _show_commands(plan: Plan, missing: Sequence[Node], jobs: str | None) -> int:
    """Write the missing commands to the file `jobs`, or print them; returns the exit status."""
    if jobs is not None:
        write_jobs(missing, Path(jobs))
        _claim(plan, missing, jobs)
        say(f"written: {jobs}")
        return 0
    for number, stage in enumerate(stages_of(missing), 1):
        commands = "\n".join(f"$ {command.plain}" for command in stage.commands)
        say(f"\nStage {number}: {stage.title}\n{commands}")
    return 0


def parse(arguments: Sequence[str]) -> tuple[list[str], ReproduceConfig]:
    """The names of tables on a command line, and its options."""
    parser = OptionParser(prog="python -m expansion.reproduce", description=__doc__)
    parser.add_argument(
        "tables", nargs="+", metavar="TABLE", help="list, all, a paper, or PAPER/TABLE",
    )  # fmt: skip
    layers = parser.read(arguments, {"options": ReproduceConfig})
    values = dict(layers.sources[-1].values)
    names = values.pop("tables")
    last = dataclasses.replace(layers.sources[-1], values=values)
    layers = dataclasses.replace(layers, sources=(*layers.sources[:-1], last))
    require(names == [LIST] or LIST not in names, "list: give it alone; it shows every table")
    return names, layers.compose(ReproduceConfig)[0]


def _with_cells(tables: list[Table], datasets: Sequence[str]) -> list[Table]:
    """The tables that have a cell of one of these datasets; all, if none is named."""
    if not datasets:
        return tables
    own = {table.name: {spec.dataset for spec in table.specs.values()} for table in tables}
    known = sorted(set().union(*own.values()))
    for name in datasets:
        if name not in known:
            raise unknown_name("dataset of these tables", name, known)
    return [table for table in tables if own[table.name] & set(datasets)]


def _list(scale: Scale, root: Path, options: PlanOptions) -> int:
    tables = read_tables(["all"])
    plan = plan_tables(tables, scale, root, options, lenient=True)
    found = {table.name: results_of(table, plan, {}) for table in tables}
    say(listing(tables, plan, found))
    say(f"\n{total(plan)}")
    say("published: cells whose published value the file has; of the others, its notes say why")
    say(f"hours: of {scale.file.device}, right within a factor of two or three")
    return 0


def _identity(scale: Scale) -> dict:
    """What decides the results of all tables at a scale."""
    values = dataclasses.asdict(scale.file)
    return {"scale": scale.name, **{k: v for k, v in values.items() if k not in NOT_DECIDING}}


def _say_plan(plan: Plan, missing: Sequence[Node], num_devices: int, inception: str) -> Estimate:
    """Say what is missing and what it takes."""
    say(f"scale {plan.scale.name}: {plan.scale.file.title}")
    work, needed = estimate_of(missing, plan, num_devices)
    if not missing:
        say("All images and trainings are there already; the tables are made again.")
        return needed
    say(
        f"missing: {len(missing)} of {len(plan.nodes)} sets, runs and figures; "
        f"{short(work.rows)} U-Net rows for {work.images:,.0f} images, {work.runs:,.0f} trainings"
    )
    uses_inception = any(
        f"inception:{inception}" in command.arguments
        for node in missing
        for command in node.commands
    )
    if uses_inception and not Path(inception).is_file():
        say(f"FID needs {inception}, which is not there: see docs/measures.md, and --inception")
    hours = needed.seconds * num_devices / 3600
    say(
        f"time: {duration(needed.seconds)}, {hours:,.1f} hours of {plan.scale.file.device}; "
        f"disk space: {needed.gigabytes:,.1f} GB; results: {plan.root}"
    )
    return needed


def _require_data(plan: Plan, data_dir: str) -> None:
    """Raise InputError for a dataset that is not there, before anything is begun."""
    arguments = [c.arguments for node in plan.nodes.values() for c in node.commands]
    names = {words[words.index("-d") + 1] for words in arguments if "-d" in words}
    for name in sorted(names):
        try:
            load_dataset(name, data_dir, log_remarks=False)
        except InputError as error:
            raise InputError(f"{error}; or leave its cells out by --datasets") from error


def _say_results(found: Sequence[TableResults], root: Path, scale: Scale) -> int:
    """Print and write all tables; returns the exit status."""
    heading = f"Scale {scale.name}: {scale.file.title}"
    page = write_outputs(found, root, heading)
    for results in found:
        title = f"{results.table.name}: {results.table.file.title}"
        say(f"\n{title}\n{'=' * len(title)}\n\n{report(results, 'text')}")
    say(f"page: {page}; Markdown, LaTeX and CSV: {root / 'tables'}")
    broken = [result for results in found for result in results.results.values() if result.failed]
    for result in broken:
        say(f"failed: {result.cell.row}, {result.cell.column}: {result.problem}")
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main)
