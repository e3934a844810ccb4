"""Makes one HTML file with the results of the runs below a folder; it needs no other files.

Its parts, as far as there is data for them: the verdict, arms with intervals, generated images
beside their real ones, what a selection keeps and what self-training accepts, classes, confusion,
curves, cost, settings and commands. If a part is left out, the page says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from expansion.common.errors import require
from expansion.common.files import check_writable, write_atomic
from expansion.metrics.classification import METRICS
from expansion.metrics.runs import full_names, read_report
from expansion.metrics.set_figures import FIGURES_FILE, GROUP, SHOWN
from expansion.metrics.tables import notes, table_columns
from expansion.report.charts import (
    SERIES,
    VARIABLES,
    Mark,
    class_chart,
    confusion_chart,
    curve_chart,
    interval_chart,
    series_style,
)
from expansion.report.classes import (
    all_predictions,
    class_changes,
    greatest_confusions,
    mean_confusion,
)
from expansion.report.cost import costs_of_arms, costs_of_sets, duration, size
from expansion.report.gallery import (
    BUDGET,
    Budget,
    Gallery,
    Judged,
    judged_by_self_training,
    variants_beside_real,
)
from expansion.report.origins import commands, common_settings, rehearsal, set_settings
from expansion.report.recognised import read_recognised, worst_classes
from expansion.report.selected import Selected, kept_and_dropped
from expansion.report.sets import ExpandedSet, by_dataset, find_sets
from expansion.report.verdict import Arm, Findings, find, signed
from expansion.training.curves import read_curve

TEMPLATE = "template.html.j2"
MOST_CLASS_ROWS = 24  # rows of the chart of classes: half the greatest gains, half the losses
NUM_CONFUSED = 12  # pairs of classes that are listed as confused
ROWS_AT_ONCE = 12  # rows of a gallery that are shown; more are folded away
LEAST_CLASSES_OF_SHADES = 13  # with fewer, the chart of confusion has numbers


@dataclass(eq=False)
class Detail:
    """Classes, confusion and curves for the arms of some findings; parts without data are empty."""

    findings: Findings
    class_picture: Markup | None = None
    changes: list = field(default_factory=list)
    confusions: list[tuple[str, Markup]] = field(default_factory=list)
    confused: list = field(default_factory=list)
    curves: list[tuple[str, Markup]] = field(default_factory=list)
    legend: list[tuple[str, str, bool]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Pictures:
    """The part of the page about the images of one dataset."""

    dataset: str
    gallery: Gallery | None
    selected: list[Selected]
    judged: list[Judged]
    recognised: list[tuple[ExpandedSet, Any]]
    notes: list[str] = field(default_factory=list)


def write_page(
    root: str, path: str, metric: str = "last_accuracy", settings: Sequence[str] = ()
) -> list[str]:
    """Write the page about all runs below a folder.

    Args:
        root: The folder.
        path: The HTML file.
        metric: Name in METRICS.
        settings: Names of settings that get a column in the full table.

    Returns:
        The verdict, a text for each of the findings.

    Raises:
        InputError: No run is finished, runs in a table have different test sets, or there can be no
            file at `path`.
    """
    check_page_path(path)
    report = read_report(root, metric)
    known = {key for row in report.rows for run in row.runs for key in run.facts}
    measured = [f"{GROUP}.{name}" for name in SHOWN if f"{GROUP}.{name}" in known]
    given = {name.rpartition(".")[2] for name in settings}
    settings = [*settings, *(n for n in measured if n.rpartition(".")[2] not in given)]
    html, findings = page_text(root, report, metric, settings)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(path), html)
    several = len(findings) > 1
    return [(f"{each.title}: " if several else "") + " ".join(each.sentences) for each in findings]


def check_page_path(path: str) -> None:
    """Raise InputError if no page can be written to `path`."""
    require(bool(path), "--output: give the path of an HTML file")
    require(
        not Path(path).is_dir(), f"--output {path} is a folder; give a file, as {path}/page.html"
    )
    place = next(each for each in Path(path).absolute().parents if each.exists())
    require(place.is_dir(), f"--output {path}: {place} is no folder; choose another place")
    check_writable(place)


def page_text(
    root: str, report: Any, metric: str, settings: Sequence[str]
) -> tuple[str, list[Findings]]:
    """Make the page.

    Args:
        root: Folder of the runs, which may hold expanded sets too.
        report: All runs below it.
        metric: Name in METRICS.
        settings: Names of settings that get a column in the full table.

    Returns:
        The HTML text, and the findings that it tells.
    """
    names = full_names(settings, report.rows)
    findings = [each for table in report.tables for each in find(table, metric)]
    sets, problems = find_sets(root, report.rows)
    return render(
        TEMPLATE,
        title=_title(findings),
        found=findings,
        arms=[_arms_part(each, names) for each in findings],
        pictures=_pictures(findings, sets),
        details=[_detail(each) for each in findings],
        arm_costs=[(each, costs_of_arms(each)) for each in findings],
        set_costs=costs_of_sets(sets),
        settings=[(each, common_settings(each)) for each in findings],
        set_settings=[(name, set_settings(group)) for name, group in by_dataset(sets).items()],
        commands=commands(findings, sets),
        rehearsal=rehearsal(sets),
        unfinished=report.unfinished,
        problems=problems,
        metric=METRICS[metric],
        metric_name=metric,
    ), findings


def render(template: str, *folders: Path, **parts: Any) -> str:
    """The HTML text of a template, which may include those of this folder.

    Args:
        template: Its file name.
        folders: Where it may lie beside this folder.
        parts: What it shows, by name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "duration": duration, "size": size}
    numbers = {"rows_at_once": ROWS_AT_ONCE, "most_class_rows": MOST_CLASS_ROWS}
    return environment.get_template(template).render(
        worst_classes=worst_classes, **numbers, **parts
    )


def _title(findings: Sequence[Findings]) -> str:
    datasets = dict.fromkeys(arm.row.text("dataset") for each in findings for arm in each.arms)
    return ", ".join(filter(None, datasets)) or "runs"


def _arms_part(findings: Findings, settings: Sequence[str]) -> dict[str, Any]:
    """The charts and the table of the arms."""
    metric, rows = findings.metric, [arm.row for arm in findings.arms]
    columns = table_columns(rows, metric, settings)
    charts = []
    original, strongest = findings.original, findings.strongest
    if original and any(arm.gain for arm in findings.arms):
        charts.append(_interval_part(findings, original, "gain"))
    if strongest is not original and any(arm.against for arm in findings.arms if arm.generated):
        charts.append(_interval_part(findings, strongest, "against"))
    return {
        "findings": findings,
        "charts": charts,
        "header": [column.header for column in columns],
        "lines": [[column.cell(row) for column in columns] for row in rows],
        "notes": notes(rows, metric),
    }


def _interval_part(findings: Findings, base: Arm, kind: str) -> tuple[str, Markup]:
    """A heading, and a chart of the gains of the arms over `base` with their intervals.

    Args:
        findings: Give the arms.
        base: The arm that the others are compared with.
        kind: Which comparison of an arm this is, "gain" or "against".
    """
    metric = findings.metric
    middle = base.mean(metric)
    marks = []
    for arm in findings.arms:
        comparison = getattr(arm, kind)
        if arm is base or (kind == "against" and not arm.generated) or comparison is None:
            continue
        gain = comparison.gain
        dots = [value - middle for value in arm.row.numbers(metric)]
        interval = (gain.low, gain.high) if gain else None
        verdict = gain.verdict if gain else ""
        text = f"{signed(comparison.mean)}  {_chart_text(gain)}"
        marks.append(Mark(arm.title, comparison.mean, interval, verdict, text, dots))
    unit = "points" if METRICS[metric].unit == "%" else METRICS[metric].unit
    label = f"gain in {METRICS[metric].title} ({unit})"
    heading = f"Against {base.title}"
    return heading, interval_chart(marks, label, f"{findings.title}: {heading.lower()}")


def _chart_text(gain: Any) -> str:
    if gain is None:
        return "no interval"
    return f"({gain.low:.1f} to {gain.high:.1f})".replace("-", "\u2212")


def _detail(findings: Findings) -> Detail:
    detail = Detail(findings)
    _add_classes(detail)
    _add_curves(detail)
    return detail


def _add_classes(detail: Detail) -> None:
    """Add the comparison of the best arm with real images alone, class by class."""
    findings = detail.findings
    before, after = all_predictions(findings.original), all_predictions(findings.best)
    if not before or not after or not before[0].same_images(after[0]):
        detail.notes.append(
            "Classes and confusion are left out: not all runs of both arms kept their predictions "
            "(older ones did not), or there is no arm to compare with."
        )
        return
    # Gains and losses of the classes.
    names, best = before[0].class_names, findings.best
    paired = best.row.seeds() == findings.original.row.seeds()
    detail.changes = class_changes(before, after, paired)
    changes = detail.changes
    if len(changes) > MOST_CLASS_ROWS:
        half = MOST_CLASS_ROWS // 2
        changes = [*changes[:half], *changes[-half:]]
    marks = [
        Mark(each.name, each.gain.mean, (each.gain.low, each.gain.high), each.gain.verdict)
        for each in changes
    ]
    detail.class_picture = class_chart(
        marks, "gain of recall (points)", f"{findings.title}: gains and losses of classes"
    )
    # Which classes are confused, before and after.
    counts = mean_confusion(before), mean_confusion(after)
    for arm, count in zip((findings.original, best), counts, strict=True):
        chart = confusion_chart(count, names, f"{findings.title}: confusion of {arm.title}")
        detail.confusions.append((arm.title, chart))
    detail.confused = greatest_confusions(*counts, names, NUM_CONFUSED)


def _add_curves(detail: Detail) -> None:
    """Add the curves of test accuracy and loss of all arms over the optimiser steps."""
    findings = detail.findings
    known = []
    for arm in findings.arms:
        runs = arm.row.runs
        curves = {
            key: [read_curve(run.folder, key, run.number("steps") or 1.0) for run in runs]
            for key in ("test_accuracy", "test_loss")
        }
        if all(curves["test_accuracy"]):
            known.append((arm, curves))
    if not known:
        detail.notes.append("Learning curves are left out: no run folder holds a log.")
        return
    for key, label in (("test_accuracy", "test accuracy (%)"), ("test_loss", "test loss")):
        of_arms = [curves[key] for _, curves in known]
        detail.curves.append((label, curve_chart(of_arms, label, f"{findings.title}: {label}")))
    for i, (arm, _) in enumerate(known):
        detail.legend.append((arm.title, VARIABLES[series_style(i)[0]], i >= len(SERIES)))


def _pictures(findings: Sequence[Findings], sets: Sequence[ExpandedSet]) -> list[Pictures]:
    """For each dataset its images, what was selected and accepted, and how many are recognised."""
    groups = by_dataset(sets)
    arms: dict[str, list[Arm]] = {}
    for arm in (arm for each in findings for arm in each.arms if arm.generated):
        arms.setdefault(arm.row.text("dataset"), []).append(arm)
    names = dict.fromkeys([*groups, *arms])
    parts = []
    for name in names:
        group, room = groups.get(name, []), BUDGET / max(1, len(groups))
        gallery = variants_beside_real(group, Budget(0.7 * room)) if group else None
        rest = Budget(0.3 * room)
        selected = [kept_and_dropped(arm, sets, rest) for arm in arms.get(name, [])]
        judged = [judged_by_self_training(arm, sets, rest) for arm in arms.get(name, [])]
        recognised = [(each, read_recognised(each)) for each in group]
        part = Pictures(
            name,
            gallery,
            [s for s in selected if s],
            [j for j in judged if j],
            [(e, r) for e, r in recognised if r],
        )
        if not group:
            part.notes.append("Generated images are not shown: no expanded set is found.")
        elif not part.recognised and not any((s.folder / FIGURES_FILE).is_file() for s in group):
            part.notes.append(
                "How many generated images are recognised as their class is not known: "
                "python -m expansion.evaluate finds out."
            )
        parts.append(part)
    return parts
