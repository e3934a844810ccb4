"""Predictions and measures: numbers by hand, what is absent, files that are no predictions."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from expansion.common.errors import InputError
from expansion.metrics.classification import METRICS, measured
from expansion.metrics.measures import (
    accuracy,
    auroc,
    balanced_accuracy,
    calibration_error,
    confusion,
    macro_f1,
    per_class_recall,
)
from expansion.metrics.predictions import Predictions


def predictions(labels: list[int], rows: list[list[float]]) -> Predictions:
    names = tuple(f"{i}.png" for i in range(len(labels)))
    classes = tuple(f"class {c}" for c in range(len(rows[0])))
    return Predictions(names, np.array(labels), np.array(rows, dtype=np.float32), classes)


def sure(labels: list[int], chosen: list[int], num_classes: int) -> Predictions:
    """Predictions of the chosen classes with certainty."""
    return predictions(labels, np.eye(num_classes)[chosen].tolist())


# Right class -> predicted: a: a a a b; b: b c; c: c; d has no test image but is predicted once.
FOUR = sure([0, 0, 0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1, 2, 2, 3], 4)


def test_confusion_counts_right_classes_in_rows():
    expected = [[3, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion(FOUR).tolist() == expected
    assert confusion(FOUR).dtype.kind == "i"


def test_accuracy_and_recalls_by_hand():
    assert accuracy(FOUR) == pytest.approx(100 * 5 / 8)
    recalls = per_class_recall(FOUR)
    assert recalls[:3].tolist() == pytest.approx([60, 50, 100]) and math.isnan(recalls[3])


def test_classes_without_test_images_are_left_out_of_means():
    assert balanced_accuracy(FOUR) == pytest.approx((60 + 50 + 100) / 3)
    # F1: a 2*3/(5+3); b 2*1/(2+2); c 2*1/(1+2)
    assert macro_f1(FOUR) == pytest.approx(100 * (6 / 8 + 1 / 2 + 2 / 3) / 3)


def test_auroc_of_two_classes_counts_ties_half():
    scores = [0.9, 0.4, 0.4, 0.2, 0.1]  # of the second class; images 0, 1 and 3 are of it
    given = predictions([1, 1, 0, 1, 0], [[1 - s, s] for s in scores])
    # 0.9 beats both, 0.4 ties with one and beats the other, 0.2 beats one: 2 + 1.5 + 1 of 6
    assert auroc(given) == pytest.approx(100 * 4.5 / 6)


def test_auroc_of_more_classes_is_the_mean_of_one_against_the_rest():
    rows = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]
    given = predictions([0, 1, 0, 2, 1], rows)
    # class 0: 0.6, 0.5 against 0.2, 0.1, 0.3: 6 of 6; class 1: 0.5, 0.3 against 0.3, 0.2, 0.2:
    # 3 + 2.5 of 6; class 2: 0.7 against 0.1, 0.3, 0.3, 0.4: 4 of 4
    assert auroc(given) == pytest.approx(100 * (1 + 5.5 / 6 + 1) / 3)


def test_auroc_of_one_class_alone_is_undefined_and_not_written():
    given = sure([0, 0], [0, 1], 2)
    assert math.isnan(auroc(given))
    assert "auroc" not in measured(given) and measured(given)["balanced_accuracy"] == 50


def test_calibration_error_by_hand():
    # Bins of 1/15: 0.98 and 0.95 share the last (0.933, 1], 0.55 is alone in (0.533, 0.6].
    given = predictions([0, 1, 0], [[0.98, 0.02], [0.95, 0.05], [0.45, 0.55]])
    # last bin: confidence 0.965, accuracy 0.5; other: confidence 0.55, accuracy 0
    assert calibration_error(given) == pytest.approx(100 * (2 * 0.465 + 0.55) / 3, abs=1e-5)


def test_a_confidence_on_a_border_belongs_to_the_bin_below():
    borders = np.arange(8, 16) / 15
    given = predictions([0] * 8, [[b, 1 - b] for b in borders])
    # each in a bin of its own: float32 may lie a trifle above or below
    assert calibration_error(given) == pytest.approx(100 * (1 - borders).mean(), abs=1e-4)


def test_measures_of_a_resample_are_those_of_the_repeated_images():
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(3), size=12).round(1)
    rows[:, 2] = 1 - rows[:, 0] - rows[:, 1]
    given = predictions(rng.integers(0, 3, 12).tolist(), np.abs(rows).tolist())
    weights = rng.multinomial(12, np.ones(12) / 12, size=4)
    for name, metric in METRICS.items():
        if metric.of_predictions is None:
            continue
        together = metric.of_predictions(given, weights)
        for counts, value in zip(weights, together, strict=True):
            chosen = np.repeat(np.arange(12), counts)
            alone = predictions(given.labels[chosen].tolist(), given.probabilities[chosen].tolist())
            assert value == pytest.approx(float(metric.of_predictions(alone))), name


def test_measures_equal_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for num_classes in (2, 3, 7):
        rows = rng.dirichlet(np.ones(num_classes), size=90).astype(np.float32)
        rows[:30] = rows[30:60]  # ties
        labels = rng.integers(0, num_classes, 90)
        given = predictions(labels.tolist(), rows.tolist())
        chosen = rows.argmax(axis=1)
        of_two = rows[:, 1] if num_classes == 2 else rows / rows.sum(axis=1, keepdims=True)
        expected = {
            "last_accuracy": sklearn.accuracy_score(labels, chosen),
            "balanced_accuracy": sklearn.balanced_accuracy_score(labels, chosen),
            "macro_f1": sklearn.f1_score(labels, chosen, average="macro"),
            "auroc": sklearn.roc_auc_score(labels, of_two, multi_class="ovr"),
        }
        values = measured(given)
        for name, value in expected.items():
            assert values[name] == pytest.approx(100 * value, abs=1e-4), (name, num_classes)
        assert confusion(given).tolist() == sklearn.confusion_matrix(labels, chosen).tolist()


def test_predictions_come_back_as_they_were_saved(tmp_path):
    names = ("\u72d7/\u00e4 1.png", "b/<2>.png")
    rows = np.array([[0.25, 0.75], [1, 0]], dtype=np.float32)
    given = Predictions(names, np.array([1, 0]), rows, ("\u72d7", "b "))
    given.save(tmp_path / "predictions.npz")
    read = Predictions.load(tmp_path / "predictions.npz")
    assert read.same_images(given) and np.array_equal(read.probabilities, rows)
    assert read.file_names == names and read.class_names == ("\u72d7", "b ")
    first = (tmp_path / "predictions.npz").read_bytes()
    given.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.array([0, 2])}, "labels beyond the 2 classes"),
        ({"labels": np.array([0.0, 1.0])}, "labels of shape"),
        ({"labels": np.array([0])}, "labels of shape"),
        ({"probabilities": np.array([[0.5, 0.5]], np.float32)}, "probabilities of shape"),
        ({"probabilities": np.array([[np.nan, 1], [0, 1]], np.float32)}, "not finite"),
        ({"probabilities": np.array([[0.5, 0.6], [0, 1]], np.float32)}, "do not sum to 1"),
        ({"probabilities": np.array([[-0.5, 1.5], [0, 1]], np.float32)}, "do not sum to 1"),
        ({"file_names": np.array([["a", "b"]])}, "no lists of texts"),
        ({"class_names": np.array([1, 2])}, "no lists of texts"),
        ({"file_names": np.array([], dtype=str)}, "no image"),
        ({"labels": np.array([None, {}], dtype=object)}, "allow_pickle"),
        ({"labels": None}, "labels"),
    ],
)
def test_a_file_of_other_content_is_refused(change, words, tmp_path):
    arrays = {
        "file_names": np.array(["a", "b"]),
        "labels": np.array([0, 1]),
        "probabilities": np.eye(2, dtype=np.float32),
        "class_names": np.array(["c", "d"]),
        **change,
    }
    path = tmp_path / "predictions.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=words) as caught:
        Predictions.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no numbers", "cut", "huge"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "predictions.npz"
    sure([0, 1], [0, 1], 2).save(path)
    if content == "cut":
        content = path.read_bytes()[:-60]
    if content == "huge":
        text = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            text, {"shape": (10**14,), "fortran_order": False, "descr": "<i8"}
        )
        content = text.getvalue()
    path.write_bytes(content)
    with pytest.raises(InputError, match="holds no predictions"):
        Predictions.load(path)
