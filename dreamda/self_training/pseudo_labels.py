"""Which generated images were accepted and under which label: files for people and for resuming.

<run_dir>/pseudo_labels.jsonl   a row per generated image
<run_dir>/pseudo_labels.yaml    rates, overall and per class
<run_dir>/pseudo_labels.png     accepted and rejected images side by side
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from PIL import Image

from dreamda.self_training.config import AmstConfig
from expansion.common.errors import shown
from expansion.common.files import to_yaml, write_atomic
from expansion.images.records import ImageRecord
from expansion.pictures.figures import captioned, save_contact_sheets


@dataclass(frozen=True)
class PseudoLabel:
    """The verdict on one generated image; labels are class numbers.

    Attributes:
        uncertainty: Largest variance of an agreeing head's probability.
        agreement: Heads that agree on the pseudo-label.
        confidence: Their mean probability of it.
        true_label: What the image really shows, where that is known.
    """

    file_name: str
    seed_label: int
    pseudo_label: int
    uncertainty: float
    agreement: int
    confidence: float
    accepted: bool
    true_label: int | None = None


def write_pseudo_labels(path: Path, rows: Sequence[PseudoLabel]) -> None:
    """JSON lines, written at once."""
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))


def read_pseudo_labels(path: Path) -> list[PseudoLabel]:
    """Rows of `write_pseudo_labels`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [PseudoLabel(**json.loads(line)) for line in lines]


def relabeled(
    records: Sequence[ImageRecord], rows: Sequence[PseudoLabel], class_names: Sequence[str]
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Accepted records under their pseudo-labels, and the rejected ones as they are."""
    accepted, rejected = [], []
    for record, row in zip(records, rows, strict=True):
        if row.accepted:
            label = row.pseudo_label
            accepted.append(dataclasses.replace(record, label=label, class_name=class_names[label]))
        else:
            rejected.append(record)
    return accepted, rejected


def summarize(rows: Sequence[PseudoLabel], class_names: Sequence[str]) -> dict[str, object]:
    """Rates in percent; those of accepted images are None if there is none.

    `accepted_accuracy` and `seed_accuracy` are there where the truth is known of every image.
    """
    accepted = [row for row in rows if row.accepted]
    summary: dict[str, object] = {
        "generated": len(rows),
        "accepted": len(accepted),
        "acceptance_rate": _percent(rows, lambda row: row.accepted),
        "mean_confidence": fmean(r.confidence for r in accepted) if accepted else None,
        "accepted_with_seed_label": _percent(accepted, lambda r: r.pseudo_label == r.seed_label),
    }
    if rows and all(row.true_label is not None for row in rows):
        summary["accepted_accuracy"] = _percent(accepted, lambda r: r.pseudo_label == r.true_label)
        summary["seed_accuracy"] = _percent(rows, lambda r: r.seed_label == r.true_label)
    summary["acceptance_rate_by_seed_class"] = {
        name: _percent([r for r in rows if r.seed_label == label], lambda row: row.accepted)
        for label, name in enumerate(class_names)
    }
    return summary


def acceptance_warnings(
    rows: Sequence[PseudoLabel], config: AmstConfig, num_heads: int, class_names: Sequence[str]
) -> list[str]:
    """A line where no image was accepted, or none under some classes: why, and what to change."""
    # Who passed which of the conditions.
    accepted = [row for row in rows if row.accepted]
    enough = min(config.min_agree, num_heads)
    agreed = [row for row in rows if row.agreement >= enough]
    certain = [row for row in agreed if row.uncertainty < config.tau]
    remedy = "give --tau or --stage1_share more, or --min_agree or --min_conf less"
    # None accepted: the condition at which the last images failed.
    if not accepted:
        reason = f"{enough} heads agree on {len(agreed)}"
        if agreed:
            least = min(row.uncertainty for row in agreed)
            reason += (
                f", of these {len(certain)} have a variance below tau {config.tau:g} (the smallest "
                f"is {least:g})"
            )
        if certain:
            most = max(row.confidence for row in certain)
            reason += (
                f", of these none has min_conf {config.min_conf:g} (the largest is {most:.3f})"
            )
        return [
            f"AMST accepts 0 of {len(rows)} generated images, so none is learnt from under a label:"
            f" {reason}; {remedy}"
        ]
    # Some accepted, but none as some of the classes.
    given = {row.pseudo_label for row in accepted}
    without = [name for label, name in enumerate(class_names) if label not in given]
    if not without:
        return []
    return [
        f"AMST accepts {len(accepted)} of {len(rows)} generated images, none of them as "
        f"{shown(without)} ({len(without)} of {len(class_names)} classes): these are learnt from "
        f"their real images alone; {remedy}"
    ]


def write_report(
    run_dir: Path,
    records: Sequence[ImageRecord],
    rows: Sequence[PseudoLabel],
    class_names: Sequence[str],
) -> None:
    """`pseudo_labels.yaml` and `pseudo_labels.png`, with more pages for many classes."""
    write_atomic(run_dir / "pseudo_labels.yaml", to_yaml(summarize(rows, class_names)))
    _save_picture(records, rows, class_names, run_dir / "pseudo_labels.png")


def _save_picture(
    records: Sequence[ImageRecord],
    rows: Sequence[PseudoLabel],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """A line per seed class: accepted images, then rejected ones, each over its pseudo-label."""
    columns, side = 6, 96
    blank = Image.new("RGB", (side, side + 16), "white")
    lines = []
    for label, name in enumerate(class_names):
        pictures = []
        for verdict in (True, False):
            chosen = [
                captioned(record.load(), class_names[row.pseudo_label], side)
                for row, record in zip(rows, records, strict=True)
                if row.seed_label == label and row.accepted is verdict
            ][:columns]
            pictures += chosen + [blank] * (columns - len(chosen))
        lines.append((f"seed label {name}", pictures))
    headings = ["accepted"] + [""] * (columns - 1) + ["rejected"] + [""] * (columns - 1)
    save_contact_sheets(lines, path, headings, cell=side + 16)


def _percent(rows: Sequence[PseudoLabel], holds: Callable[[PseudoLabel], bool]) -> float | None:
    return round(100 * fmean(map(holds, rows)), 2) if rows else None
