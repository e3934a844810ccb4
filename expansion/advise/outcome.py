"""What the adviser leaves: the advised study, the record of its rounds, and the page."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.advise.pilot import Pilot, plain_arm
from expansion.advise.rounds import Answer, Place
from expansion.common.files import to_yaml, write_atomic
from expansion.metrics.comparison import Gain
from expansion.report.charts import Mark, interval_chart
from expansion.report.gallery import BUDGET, Budget, variants_beside_real
from expansion.report.page import render
from expansion.report.sets import read_set
from expansion.report.verdict import signed
from expansion.study.settings import LABELS, Arm
from expansion.study.steps import Study, train_command

NEARLY = 1.0  # points; two arms that differ by fewer are called nearly as good
ADVISED_FILE, RECORD_FILE, PAGE_FILE = "advised.yaml", "advice.json", "advice.html"


@dataclass(frozen=True)
class Outcome:
    """All that a pilot found.

    Attributes:
        pilot: The pilot.
        rounds: The places of the arms in each round, from the best to the worst.
        gains: Arms with generated images, and their gain in their last round over the best arm
            without, of the same repeats.
        answer: What is advised.
        cost: What it costs, in words.
        rehearsal: A warning, if the tiny model stands in for a real one.
    """

    pilot: Pilot
    rounds: Sequence[Sequence[Place]]
    gains: Sequence[tuple[Arm, Gain]]
    answer: Answer
    cost: str
    rehearsal: str = ""

    @property
    def headline(self) -> str:
        """The advice in a sentence."""
        best, base = self.pilot.title(self.answer.best), self.pilot.title(self.answer.base)
        if self.answer.expand:
            return f"Expand: {best}."
        if self.answer.expected >= NEARLY:
            return f"Do not expand: less than {self.pilot.config.worth:g} points are expected."
        return f"Do not expand: {base} is as good here, or nearly so."

    @property
    def expected(self) -> str:
        """The gain that goes with it."""
        found, gain = self.answer, self.answer.gain
        best, base = self.pilot.title(found.best), self.pilot.title(found.base)
        alone = " The pilot itself shows no gain." if gain.mean <= 0 < found.expected else ""
        return (
            f"{best} against {base}: {signed(found.expected)} points are expected "
            f"({_range(*found.interval)}, 95 %), weighing the pilot's {signed(gain.mean)} "
            f"({_range(gain.low, gain.high)}) against what other sets gained; a gain at all is "
            f"{100 * found.probability:.0f} % probable.{alone}"
        )


def _range(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def advised_study(pilot: Pilot, best: Arm, base: Arm) -> Study:
    """The study that compares the advised arm with the best one without generated images."""
    study = pilot.study
    compared = (plain_arm(study), base, best)
    kept = tuple(arm for arm in study.settings.arms if arm in compared)
    advised = study.with_config(methods=(best.method,))
    settings = dataclasses.replace(advised.settings, arms=kept)
    return dataclasses.replace(advised, settings=settings)


def advised_command(outcome: Outcome, settings: Mapping[str, Any]) -> str:
    """Write the study file of the advised arm, and return the command to type.

    Args:
        outcome: What the pilot found.
        settings: The settings of the study, as its identity has them.
    """
    study, answer = outcome.pilot.study, outcome.answer
    if not answer.expand:
        return train_command(study, answer.base).plain
    advised = advised_study(outcome.pilot, answer.best, answer.base)
    name, config = answer.best.method, study.settings.config
    values = {
        **settings,
        "methods": [name],
        "method_options": {
            key: options
            for key, options in settings.get("method_options", {}).items()
            if key in (name, study.settings.samplers[name])
        },
        "arms": [_as_written(arm) for arm in advised.settings.arms],
        "seeds": list(config.seeds),
    }
    path = study.output_dir / ADVISED_FILE
    note = "# What expansion.advise advises; its pilot images lie beside it and are part of it.\n"
    write_atomic(path, note + to_yaml(values))
    words = ["python", "-m", "expansion.study", study.place[1], *_of_study(study.place[2:])]
    return shlex.join([*words, "--config", str(path), "--output_dir", str(study.output_dir)])


def _of_study(place: Sequence[str]) -> Iterator[str]:
    """The options that name the images, without the one that a study finds out by itself."""
    for option, value in zip(place[::2], place[1::2], strict=True):
        if option != "--on_error":
            yield from (option, value)


def _as_written(arm: Arm) -> dict[str, Any]:
    """An arm as a study file has it."""
    values = {"method": arm.method} if arm.method else {}
    values |= {"labels": arm.labels} if arm.labels != LABELS[0] else {}
    return {**values, **arm.options}


def write_record(outcome: Outcome, command: str) -> Path:
    """Write what was found as JSON, for programs."""
    answer, pilot = outcome.answer, outcome.pilot
    record = {
        "expand": answer.expand,
        "command": command,
        "advised": _as_written(answer.best if answer.expand else answer.base),
        "best": _as_written(answer.best),
        "base": _as_written(answer.base),
        "pilot_gain": [answer.gain.mean, answer.gain.low, answer.gain.high],
        "expected_gain": [answer.expected, *answer.interval],
        "probability": answer.probability,
        "effort": dataclasses.asdict(pilot.effort),
        "cut_short": pilot.cut_short,
        "rounds": [[_place(place) for place in places] for places in outcome.rounds],
    }
    path = pilot.study.output_dir / RECORD_FILE
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def _place(place: Place) -> dict[str, Any]:
    return {**dataclasses.asdict(place), "arm": _as_written(place.arm)}


def write_page(outcome: Outcome, command: str) -> Path:
    """Write the page that shows how it was decided."""
    pilot, answer = outcome.pilot, outcome.answer
    study, effort = pilot.study, pilot.effort
    # The chart and the table of the arms.
    marks = [
        Mark(pilot.title(arm), gain.mean, (gain.low, gain.high), gain.verdict, signed(gain.mean))
        for arm, gain in outcome.gains
    ]
    title = "gains of the arms in the pilot"
    lines = []
    for first in outcome.rounds[0]:
        found = [next((p for p in places if p.arm == first.arm), None) for places in outcome.rounds]
        cells = [(f"{p.accuracy:.1f}", p.goes_on) if p else ("", True) for p in found]
        lines.append((pilot.title(first.arm), cells))
    # Images of the sets that lie in the final folders.
    names = dict.fromkeys(arm.method for arm in pilot.candidates)
    folders = [study.set_folder(name) for name in names]
    sets = [read_set(folder) for folder in folders if folder.is_dir()]
    notes = ["The time was over before the last round."] if pilot.cut_short else []
    html = render(
        "advice.html.j2",
        Path(__file__).parent,
        title=study.dataset.name,
        found=answer,
        headline=outcome.headline,
        expected=outcome.expected,
        cost=outcome.cost,
        command=command,
        base=pilot.title(answer.base),
        how=how_it_works(pilot),
        chart=interval_chart(marks, "gain (points)", title),
        headings=[f"{seeds} x" for seeds in effort.repeats[: len(outcome.rounds)]],
        lines=lines,
        num_images=study.num_train,
        notes=notes,
        pictures=variants_beside_real(sets, Budget(0.7 * BUDGET)) if sets else None,
        rehearsal=outcome.rehearsal,
    )
    path = study.output_dir / PAGE_FILE
    write_atomic(path, html)
    return path


def how_it_works(pilot: Pilot) -> str:
    """The pilot in words."""
    effort, count = pilot.effort, pilot.study.num_train
    shared = "".join(f", {key} {value}" for key, value in pilot.shared.items())
    return (
        f"The {count} training images were dealt out to {effort.folds} parts. Each arm was trained "
        f"{effort.folds} times per repeat, each time on all parts but one, with {effort.variants} "
        f"generated images for each real one and {pilot.num_steps} optimiser steps{shared}, and "
        "tested on the part left out."
    )
