"""The metrics of a classifier: trainer, tables and page read what there is from here.

Those of predictions are computed by `expansion.metrics.measures`, which needs numpy; this module
does not, so that a command line can list the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expansion.common.config import import_object

if TYPE_CHECKING:
    from expansion.metrics.predictions import Predictions


@dataclass(frozen=True)
class Metric:
    """A number per run.

    Attributes:
        title: Of its column.
        unit: Of the number.
        better: "higher" or "lower".
        of_predictions: Computes it from Predictions, with weights of the images as its second
            argument; None: only results.yaml has it.
        note: What it is, for the end of a table.
        by_class: Whether every class weighs the same, however few test images it has.
    """

    title: str
    unit: str
    better: str
    of_predictions: Callable[..., Any] | None
    note: str
    by_class: bool = False

    @property
    def header(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})"


def _measure(name: str) -> Callable[..., Any]:
    """The function of `measures` of this name, imported at its first use."""

    def measure(predictions: Predictions, weights: Any = None) -> Any:
        return import_object(f"expansion.metrics.measures:{name}")(predictions, weights)

    return measure


METRICS = {
    "last_accuracy": Metric(
        "last-epoch top-1", "%", "higher", _measure("accuracy"),
        "on the test set after the last epoch",
    ),
    "best_accuracy": Metric(
        "best on test", "%", "higher", None,
        "highest of all evaluations on the test set, which the papers report and which is "
        "optimistic",
    ),
    "selected_accuracy": Metric(
        "selected top-1", "%", "higher", None,
        "on the test set when held-out training images did best; in runs with --val_fraction",
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy", "%", "higher", _measure("balanced_accuracy"),
        "mean over the classes of the share of their test images that are recognised", True,
    ),
    "macro_f1": Metric(
        "macro F1", "%", "higher", _measure("macro_f1"),
        "mean over the classes of the harmonic mean of precision and recall", True,
    ),
    "auroc": Metric(
        "AUROC", "%", "higher", _measure("auroc"),
        "area under the ROC curve, of one class against the rest, mean over the classes", True,
    ),
    "calibration_error": Metric(
        "calibration error", "%", "lower", _measure("calibration_error"),
        "expected difference between confidence and accuracy, 15 bins; lower is better",
    ),
}  # fmt: skip


def measured(predictions: Predictions) -> dict[str, float]:
    """All metrics that can be computed from predictions, by name."""
    values = {
        name: float(metric.of_predictions(predictions))
        for name, metric in METRICS.items()
        if metric.of_predictions
    }
    return {name: value for name, value in values.items() if value == value}  # not NaN
