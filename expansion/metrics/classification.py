"""The metrics of a classifier, of which trainer, tables and page take their list.

Most of them are functions of the predictions on the test set, which `expansion.metrics.measures`
computes. A new one is a function there and a line in `METRICS`. This module imports no numpy, so
that a command line can list the names quickly.
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
    """A number that tells how good the classifier of a run is.

    Attributes:
        title: Heading of its column.
        unit: Unit of the number.
        better: "higher" or "lower", which values are better.
        of_predictions: A function (predictions, weights) -> values as in `measures`; None if it
            cannot be computed from the predictions after the last step, but is in results.yaml.
        note: What it measures, for the end of a table.
        by_class: Whether all classes have the same weight, however few test images they have.
    """

    title: str
    unit: str
    better: str
    of_predictions: Callable[..., Any] | None
    note: str
    by_class: bool = False

    @property
    def header(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})"


def _measure(name: str) -> Callable[..., Any]:
    """The function of this name in `measures`, which is imported when it is first called."""

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
    """Name -> value, for all metrics that can be computed from these predictions."""
    values = {
        name: float(metric.of_predictions(predictions))
        for name, metric in METRICS.items()
        if metric.of_predictions
    }
    return {name: value for name, value in values.items() if value == value}  # not NaN
