"""Contact sheets of an expanded set: for every class a row with a real image and its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expansion.generation.plan import Plan
from expansion.images.records import ImageRecord
from expansion.pictures.figures import save_contact_sheets
from expansion.store.places import generated_record

MAX_COLUMNS = 8  # largest number of variants in a row


def write_contact_sheets(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `contact_sheet.png`, and `contact_sheet_2.png` etc. if the classes need more pages.

    Each row shows the first real image of a class and its first variants.

    Args:
        plan: The run.
        rows: Rows of the manifest, with all images of the plan.
    """
    columns = range(min(MAX_COLUMNS, plan.config.num_images_per_prompt))
    by_key = {(row["source"], row["variant"]): row for row in rows}
    first: dict[int, ImageRecord] = {}
    for record in plan.expanded:
        first.setdefault(record.label, record)
    lines = []
    for label, record in sorted(first.items()):
        variants = [
            generated_record(
                plan.output_dir, by_key[record.file_name, k], label, record.class_name
            ).load()
            for k in columns
        ]
        lines.append((plan.dataset.prompt_names[label], [record.load(), *variants]))
    headings = ["real", *(f"variant {k}" for k in columns)]
    save_contact_sheets(lines, plan.output_dir / "contact_sheet.png", headings)
