"""The toy metric of CONTRIBUTING.md: the right class is among the two most probable."""

from __future__ import annotations

import numpy as np
import pytest

import parse_logs
from expansion.common.config import load_yaml
from expansion.metrics.classification import METRICS, Metric
from expansion.metrics.predictions import Predictions
from tests.helpers.noise_runs import train

# expansion/metrics/measures.py: the formula.


def top2(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of the images whose class is among the two most probable, in percent.

    Args:
        predictions: On the test set.
        weights: How often each image counts, (..., N), in resamples; None: once.
    """
    likely = predictions.probabilities.argsort(axis=1)[:, -2:]
    hits = (likely == predictions.labels[:, None]).any(axis=1)
    weights = np.ones(len(hits)) if weights is None else weights
    return 100 * (weights @ hits) / weights.sum(axis=-1)


# expansion/metrics/classification.py: an entry in METRICS, with _measure("top2") for the function.

ENTRY = Metric("top-2", "%", "higher", top2, "the right class is one of the two most probable")


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setitem(METRICS, "top2", ENTRY)


def test_the_formula_by_hand():
    rows = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], dtype=np.float32)
    given = Predictions(("a", "b", "c"), np.array([0, 1, 2]), rows, ("x", "y", "z"))
    assert top2(given) == pytest.approx(200 / 3)
    assert top2(given, np.array([[1, 0, 0], [1, 0, 1]])).tolist() == [100, 50]


def test_a_run_has_the_metric_and_a_table_compares_by_it(dataset, tmp_path, capsys):
    folder = train(dataset, tmp_path)
    value = load_yaml(folder / "results.yaml").values["top2"]
    assert value == pytest.approx(float(top2(Predictions.load(folder / "predictions.npz"))))
    parse_logs.main([str(tmp_path), "--table", "--metric", "top2"])
    table = capsys.readouterr().out
    assert "top-2 (%)" in table and f"{value:.2f}" in table
