"""Runs what a plan lacks: past what fails, and on from where it stopped."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from expansion.common.errors import GO_ON, InputError
from expansion.common.files import write_atomic
from expansion.reproduce.nodes import Node, Plan, stages_of
from expansion.study import jobs, talk
from expansion.study.estimate import Estimate, Work, estimate
from expansion.study.runner import Failed, Runner
from expansion.study.talk import say


def missing_nodes(plan: Plan) -> list[Node]:
    """What is not there yet; what only finished work needs is left out."""
    wanted: dict[Path, None] = {}

    def want(path: Path) -> None:
        node = plan.nodes[path]
        if path not in wanted and not node.is_finished():
            wanted[path] = None
            for needed in node.needs:
                want(needed)

    for path in _ends(plan):
        want(path)
    return [node for path, node in plan.nodes.items() if path in wanted]


def _ends(plan: Plan) -> list[Path]:
    """What no other work needs: runs, figures and times."""
    needed = {path for node in plan.nodes.values() for path in node.needs}
    return [path for path in plan.nodes if path not in needed]


def estimate_of(nodes: Sequence[Node], plan: Plan, num_devices: int) -> tuple[Work, Estimate]:
    """The work of these nodes, and its time and disk space on the scale's device."""
    work = Work()
    for node in nodes:
        for command in node.commands:
            work = work.plus(command.work, 1.0 - command.share_done())
    return work, estimate(work, plan.scale.costs, num_devices)


def write_jobs(nodes: Sequence[Node], path: Path) -> None:
    """Write the commands of nodes, one per line; the first lines say where each stage stands.

    Raises:
        InputError: The file cannot be written.
    """
    stages = stages_of(nodes)
    heads = [
        "Commands of python -m expansion.reproduce, one per line. Stages follow each other; within",
        "one, lines go in any order: sbatch -a FIRST-LAST --wrap 'sed -n "
        f'"${{SLURM_ARRAY_TASK_ID}}p" {path.name} | bash\'',
    ]
    line = len(heads) + len(stages) + 1
    for number, stage in enumerate(stages, 1):
        last = line + len(stage.commands) - 1
        heads.append(f"stage {number}, {stage.title}: lines {line}-{last}")
        line = last + 1
    commands = [command.plain for stage in stages for command in stage.commands]
    text = "\n".join([*(f"# {head}" for head in heads), *commands])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{text}\n")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; give --jobs another place"
        ) from error


def environs(devices: Sequence[str], small_images: bool) -> list[dict[str, str]]:
    """The environment variables of each process: of the GPUs given, of those here, or the CPU."""
    if devices or shutil.which("nvidia-smi"):
        with Runner([{}], sys.stdout, False) as runner:
            gpus = runner.ask("expansion.study.estimate:probe", [])["gpus"]
        found = jobs.on_gpus(gpus, devices)
        if found:
            return found
    return jobs.on_cpu(jobs.num_cores(), small_images)


def run_nodes(
    plan: Plan, nodes: Sequence[Node], processes: Sequence[Mapping[str, str]]
) -> dict[Path, str]:
    """Run nodes stage by stage.

    Args:
        plan: The plan.
        nodes: What is missing.
        processes: Environment of each process.

    Returns:
        Node -> why it failed; also of nodes that need one that failed.

    Raises:
        Failed: A signal stopped it.
    """
    failed: dict[Path, str] = {}
    by_stage: dict[int, list[Node]] = {}
    for node in nodes:
        by_stage.setdefault(node.stage, []).append(node)
    with Runner(processes, sys.stdout, talk.on_terminal(), brief=True, keep_going=True) as runner:
        for number, (_, each) in enumerate(sorted(by_stage.items()), 1):
            able = [node for node in each if _able(node, plan, failed)]
            for stage in stages_of(able):  # one, or none
                count = len(stage.commands)
                say(f"\nStage {number} of {len(by_stage)}: {stage.title}, {count} commands")
                runner.run(stage)
            for node in able:
                reasons = [runner.failures[c] for c in node.commands if c in runner.failures]
                if reasons:
                    failed[node.path] = reasons[0]
    return failed


def _able(node: Node, plan: Plan, failed: dict[Path, str]) -> bool:
    """Whether nothing that a node needs has failed; else the reason is noted for it."""
    for path in node.needs:
        if path in failed:
            failed[node.path] = failed[path]
            return False
    return True


def stopped(failure: Failed) -> int:
    """Say that the work was stopped; returns the exit status."""
    say(f"\nstopped; {GO_ON}")
    return failure.status
