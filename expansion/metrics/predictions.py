"""What a classifier says about every test image, kept in its run folder.

predictions.npz   file_names (N,)  paths in the dataset, in its order
                  labels (N,)  right classes, from 0
                  probabilities (N, C)  float32, softmax of the weights after the last step
                  class_names (C,)
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from expansion.common.errors import InputError
from expansion.common.files import write_atomic

PREDICTIONS_FILE = "predictions.npz"
LARGEST_ERROR = 1e-3  # of the sum of an image's probabilities
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of every class, for every image of a test set.

    Attributes:
        file_names: Of the images, (N,).
        labels: Right classes, (N,) integers.
        probabilities: (N, C) float32, rows sum to 1.
        class_names: (C,).

    Raises:
        InputError: The shapes do not fit, a number is not finite, a label is no class, or rows do
            not sum to 1.
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
        """Class of the highest probability, (N,); the first of equal ones."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def hits(self) -> np.ndarray:
        """Whether the predicted class is right, (N,) bool."""
        return self.predicted == self.labels

    def same_images(self, other: Predictions) -> bool:
        """Whether both are of the same images under the same labels, in the same order."""
        return (
            self.file_names == other.file_names
            and self.class_names == other.class_names
            and np.array_equal(self.labels, other.labels)
        )

    def save(self, path: Path) -> None:
        """Write the file whole, or not at all."""
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
            InputError: It is something else, or damaged.
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
