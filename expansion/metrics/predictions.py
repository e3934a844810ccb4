"""The predictions of a classifier for all N test images of C classes, kept in its run folder.

predictions.npz   file_names (N,)  paths in the dataset, in its order
                  labels (N,)  right classes, from 0
                  probabilities (N, C)  float32, softmax after the last training step
                  class_names (C,)
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from expansion.common.errors import InputError
from expansion.common.files import write_atomic

PREDICTIONS_FILE = "predictions.npz"
LARGEST_ERROR = 1e-3  # by which the probabilities of an image may miss a sum of 1
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of all C classes for each of the N images of a test set.

    Attributes:
        file_names: File names of the images, N.
        labels: Right classes, integers (N,), each in 0 .. C - 1.
        probabilities: (N, C) float32; each row sums to 1.
        class_names: Names of the classes, C, in label order.

    Raises:
        InputError: The shapes do not fit together, a number is not finite, a label is no class, or
            a row does not sum to 1.
    """

    file_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self):
        shape = len(self.file_names), len(self.class_names)
        fault = None
        if min(shape) == 0:
            fault = "no image or no class"
        elif self.labels.shape != shape[:1] or self.labels.dtype.kind not in "iu":
            fault = f"labels of shape {self.labels.shape}, {self.labels.dtype}"
        elif self.probabilities.shape != shape or self.probabilities.dtype != np.float32:
            fault = f"probabilities of shape {self.probabilities.shape}, {self.probabilities.dtype}"
        elif not np.isfinite(self.probabilities).all():
            fault = "probabilities that are not finite"
        elif self.probabilities.min() < 0 or self._worst_sum() > LARGEST_ERROR:
            fault = "probabilities that do not sum to 1"
        elif self.labels.min() < 0 or self.labels.max() >= shape[1]:
            fault = f"labels beyond the {shape[1]} classes"
        if fault:
            raise InputError(f"predictions for {shape[0]} images, {shape[1]} classes: {fault}")

    def _worst_sum(self) -> float:
        return float(np.abs(self.probabilities.sum(axis=1, dtype=np.float64) - 1).max())

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, (N,); the first of equally probable ones."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def hits(self) -> np.ndarray:
        """Whether the most probable class of each image is right, (N,) bool."""
        return self.predicted == self.labels

    def same_images(self, other: Predictions) -> bool:
        """Whether both are about the same images with the same labels, in the same order."""
        return (
            self.file_names == other.file_names
            and self.class_names == other.class_names
            and np.array_equal(self.labels, other.labels)
        )

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all."""
        content = io.BytesIO()
        np.savez_compressed(
            content,
            file_names=np.array(self.file_names, dtype=np.str_),
            labels=self.labels.astype(np.int64),
            probabilities=self.probabilities,
            class_names=np.array(self.class_names, dtype=np.str_),
        )
        write_atomic(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read a file that `save` wrote.

        Raises:
            InputError: The file is of another kind, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                names, classes = stored["file_names"], stored["class_names"]
                labels, probabilities = stored["labels"], stored["probabilities"]
            if (
                names.ndim != 1
                or classes.ndim != 1
                or {names.dtype.kind, classes.dtype.kind} != {"U"}
            ):
                raise InputError("names that are no lists of texts")
            return cls(tuple(names.tolist()), labels, probabilities, tuple(classes.tolist()))
        except READ_ERRORS as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{path} holds no predictions: {problem}") from error


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of a cross-validation: those for all parts of a set, sorted by file name.

    Raises:
        InputError: An image is in two parts, or the parts have other classes.
    """
    names = [name for part in parts for name in part.file_names]
    if len(set(names)) < len(names):
        raise InputError("an image is in two parts of a cross-validation")
    if len({part.class_names for part in parts}) > 1:
        raise InputError("the parts of a cross-validation have other classes")
    order = np.argsort(np.array(names, dtype=object))
    return Predictions(
        tuple(names[i] for i in order),
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.probabilities for part in parts])[order],
        parts[0].class_names,
    )
