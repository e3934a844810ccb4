"""What a selection kept and dropped of a set, for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.common.errors import InputError
from expansion.metrics.run_folder import Run
from expansion.report.gallery import (
    SELF_TRAINING_CLASSES,
    SELF_TRAINING_IMAGES,
    Budget,
    Gallery,
    record_of,
    spread,
)
from expansion.report.sets import SELECTION_FILE, ExpandedSet, set_folder
from expansion.report.verdict import Arm
from expansion.store.selection import Selection


@dataclass(eq=False)
class Selected:
    """What the selection of an arm keeps.

    Attributes:
        title: Of the arm.
        summary: Rule and numbers, in sentences.
        gallery: Rows: classes; columns: kept, dropped.
        reasons: (reason, images dropped for it), the most frequent first.
    """

    title: str
    summary: str
    gallery: Gallery
    reasons: list[tuple[str, int]]


def kept_and_dropped(arm: Arm, sets: Sequence[ExpandedSet], budget: Budget) -> Selected | None:
    """Some images of each kind; None of an arm without a selection."""
    # The rule and the numbers.
    run = arm.row.runs[0]
    if SELECTION_FILE not in run.facts:
        return None
    rule, gallery = run.facts.get("selection", "a rule too long to show"), Gallery([])
    selection = _as_it_was(run)
    if selection is None:
        gallery.notes.append(
            "The images are not shown: the selection's file is gone or another one now."
        )
        return Selected(arm.title, f"Kept: {rule}.", gallery, [])
    kept, dropped = selection.kept, selection.dropped
    summary = f"Of {len(kept) + len(dropped)} images {len(kept)} are kept: {rule}."
    gallery.headings = ["kept", "dropped"]
    found = Selected(arm.title, summary, gallery, Counter(dropped.values()).most_common())

    # The images, where the set still is.
    folder = set_folder(run)
    mine = [each for each in sets if folder and each.folder.resolve() == folder.resolve()]
    if not mine:
        gallery.notes.append("The images are not shown: their expanded set is not there any more.")
        return found
    rows = [row for _, row in sorted(mine[0].rows.items())]
    names = list(dict.fromkeys(row["class"] for row in rows))
    room = budget.count // (2 * SELF_TRAINING_IMAGES)
    for name in spread(names, min(SELF_TRAINING_CLASSES, room)):
        columns = []
        for title, part in (("kept", kept), ("dropped", dropped)):
            there = [row for row in rows if row["class"] == name and row["file_name"] in part]
            columns.append(
                [
                    budget.thumbnail(
                        record_of(mine[0], row),
                        f"{title} variant of an image of {name}",
                        dropped.get(row["file_name"], "").replace("_", " "),  # to break there
                    )
                    for row in spread(there, SELF_TRAINING_IMAGES)
                ]
            )
        gallery.rows.append((name, columns))
    if len(gallery.rows) < len(names):
        gallery.notes.append(f"{len(gallery.rows)} of {len(names)} classes are shown.")
    return found


def _as_it_was(run: Run) -> Selection | None:
    """The selection that the run learnt from; None where the file is gone or holds another one."""
    try:
        selection = Selection.read(Path(run.folder, str(run.facts[SELECTION_FILE])))
    except InputError:
        return None
    return selection if run.facts.get("selection") in (selection.rule, None) else None
