"""How labels given to generated images compare with those of their real images. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from expansion.images.records import ImageRecord


def label_results(records: Sequence[ImageRecord], labels: Sequence[int]) -> dict[str, float]:
    """Figures for results.yaml, percent of the generated images.

    `label_agreement`: the label is the seed label. `label_accuracy`: it is the true one; there only
    where the truth is known of every image.

    Args:
        records: Generated images under their seed labels.
        labels: Their new labels, in the same order.
    """
    pairs = list(zip(records, labels, strict=True))
    results = {"label_agreement": _percent([r.label == label for r, label in pairs])}
    if all(record.true_label is not None for record in records):
        results["label_accuracy"] = _percent([r.true_label == label for r, label in pairs])
    return results


def _percent(hits: Sequence[bool]) -> float:
    return round(100 * fmean(hits), 2)
