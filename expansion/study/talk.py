"""The texts that a study prints for the user."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from expansion.common.config import load_yaml
from expansion.study.choices import Machine, Network
from expansion.study.estimate import Estimate, Work, duration
from expansion.study.steps import Command, Stage, Study

REHEARSAL = (
    "REHEARSAL: the tiny diffusion model can draw digits only, so the generated images show "
    "nothing of yours, and no figure means anything"
)
STEPS_BEFORE = 1  # step 1 is the look at the photos


def say(text: str) -> None:
    """Print text at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def on_terminal() -> bool:
    """Whether there is a user who can read and answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def agreed(question: str) -> bool:
    """Whether the user answers yes; an empty answer, or no user to answer, means yes as well."""
    if not on_terminal():
        return True
    try:
        answer = input(f"{question} [Y/n] ")
    except EOFError:
        return False
    return answer.strip().casefold() in ("", "y", "yes", "j", "ja", "o", "oui", "s", "si")


def heading(number: int, todo: Sequence[Stage], stage: Stage) -> str:
    """The line before the commands of a stage.

    Args:
        number: Number of the stage, from 1.
        todo: All stages.
        stage: The stage.
    """
    return f"\nStep {number + STEPS_BEFORE} of {len(todo) + STEPS_BEFORE}: {stage.title}"


def describe_plan(study: Study, network: Network, todo: Sequence[Stage], rehearsal: bool) -> str:
    """The plan in words: what will be trained and compared.

    Args:
        study: The study.
        network: Its classifier.
        todo: All stages.
        rehearsal: Whether the tiny diffusion model stands in for a real one.
    """
    config = study.settings.config
    arms = dict.fromkeys(c.title for stage in todo for c in stage.commands if c.work.runs)
    counts = {study.num_images(method) for method in config.methods}
    number = "/".join(map(str, sorted(counts)))
    seeds = (
        f"{len(config.seeds)} times each, with other seeds"
        if len(config.seeds) > 1
        else "once each"
    )
    lines = [
        f"classifier: {network.why}",
        f"images: {number} from each real one, with {', '.join(config.methods)}"
        + (f"; diffusion model {config.model}" if config.model else ""),
        f"trainings, {seeds}: {', '.join(arms)}",
        f"results: {study.output_dir}",
    ]
    if rehearsal:
        lines.insert(0, REHEARSAL)
    return "\n".join(lines)


def describe_estimate(needed: Estimate, work: Work, machine: Machine, num_jobs: int) -> str:
    """Time and disk space that are still needed, in words.

    Args:
        needed: The estimate.
        work: The work that is left.
        machine: The machine.
        num_jobs: Number of processes that run side by side.
    """
    if machine.gpus:
        place = f"{num_jobs} x {machine.gpus[0]}" if num_jobs > 1 else machine.gpus[0]
    else:
        place = "the CPU; a GPU would be far quicker" if needed.seconds > 3600 else "the CPU"
    parts = []
    if work.images:
        parts.append(f"{work.images:,.0f} images, {duration(needed.generating)}")
    if work.runs:
        parts.append(f"{work.runs:.0f} trainings, {duration(needed.training)}")
    return (
        f"time: {duration(needed.seconds)} on {place} ({'; '.join(parts)}); "
        f"disk space: {max(needed.gigabytes, 0.1):.1f} GB"
    )


def describe_end(todo: Sequence[Stage], rehearsal: bool) -> str:
    """The last lines: what the user may do next."""
    lines = [""]
    if rehearsal:
        lines.append(
            "This was the rehearsal. Next: the same with a real diffusion model, --model FOLDER"
        )
    else:
        lines.append("Next, what the best classifier says of new photos:")
        lines.append(f"  python -m expansion.predict {best_run(todo)} path/to/new/photos")
    return "\n".join(lines)


def best_run(todo: Sequence[Stage]) -> Path:
    """The first run of the arm whose runs are, on average, best on the test images."""

    def accuracy(command: Command) -> float:
        results = (load_yaml(folder / "results.yaml").values for folder in command.folders)
        return fmean(values["last_accuracy"] for values in results)

    arms = [command for stage in todo for command in stage.commands if command.work.runs]
    return max(arms, key=accuracy).folders[0]
