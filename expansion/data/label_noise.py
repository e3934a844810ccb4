"""Wrong labels on purpose, to study what learns around them. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from expansion.common.seeding import stable_seed
from expansion.images.records import ImageRecord


def with_label_noise(
    records: Sequence[ImageRecord], share: float, seed: int, class_names: Sequence[str]
) -> list[ImageRecord]:
    """Give a share of the records a wrong label; all of them get their `true_label`.

    The wrong labels are uniform over the other classes. The records that are wrong at one share are
    also wrong at any larger share.

    Args:
        records: M records.
        share: 0 to 1; round(share * M) records become wrong.
        seed: Decides which records become wrong, and their labels.
        class_names: Names of the classes, in label order.
    """
    draws = {r.file_name: stable_seed("label noise", seed, r.file_name) for r in records}
    wrong = set(sorted(draws, key=draws.__getitem__)[: round(share * len(records))])
    noisy = []
    for record in records:
        label = record.label
        if record.file_name in wrong:
            steps = stable_seed("wrong label", seed, record.file_name) % (len(class_names) - 1)
            label = (label + 1 + steps) % len(class_names)
        noisy.append(
            dataclasses.replace(
                record, label=label, class_name=class_names[label], true_label=record.label
            )
        )
    return noisy
