"""All figures of one set of images, from their features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expansion.images.records import ImageRecord
from expansion.measures.distributions import (
    Figures,
    PaperFigures,
    Reference,
    Sample,
    compare,
    compare_classes,
    paper_figures,
)
from expansion.measures.memorisation import Limits, Nearness, nearness
from expansion.measures.recognition import Recognition, recognition
from expansion.measures.sets import ImageSet, Measured

WORST = 5  # classes that are listed


@dataclass(frozen=True)
class Real:
    """Features of the real images, and what follows from them alone.

    Attributes:
        train: Of the training images; `test` likewise.
        reference: What sets are compared with; `paper` what the papers' columns are.
        limits: Up to which distance an image is a copy.
    """

    measured: Measured
    train: np.ndarray
    test: np.ndarray
    reference: Reference
    paper: Reference
    limits: Limits


@dataclass(frozen=True)
class Evaluation:
    """What is known of one set.

    Attributes:
        overall: Against all of the reference.
        classes: By label, of those with enough images.
        nearness: To real images and to each other.
        judged: What classifiers of real images say; None: there is none.
        by_clip: What CLIP says; None unless the features are its.
        paper: The papers' columns; None: not asked for, or too few images.
    """

    image_set: ImageSet
    overall: Figures
    classes: dict[int, Figures]
    nearness: Nearness
    limits: Limits
    judged: Recognition | None
    by_clip: Recognition | None
    paper: PaperFigures | None

    def class_mean(self, name: str) -> float:
        """Mean of a figure over the classes that have it."""
        values = [getattr(figures, name) for figures in self.classes.values()]
        return float(np.mean(values)) if values else math.nan

    def figures(self) -> dict[str, float | int]:
        """Every figure of the set by its name, NaN where there is none."""
        limits, labels = self.limits, self.image_set.labels
        judged, by_clip = self.judged, self.by_clip
        paper = dataclasses.asdict(self.paper) if self.paper else {}
        return {
            "images": len(labels),
            **dataclasses.asdict(self.overall),
            "class_kid": self.class_mean("kid"),
            "class_cmmd": self.class_mean("cmmd"),
            "class_coverage": self.class_mean("coverage"),
            "class_density": self.class_mean("density"),
            "recognised": float(judged.hits.mean()) if judged else math.nan,
            "own_probability": float(judged.own.mean()) if judged else math.nan,
            "entropy": float(judged.entropy.mean()) if judged else math.nan,
            "clip_recognised": float(by_clip.hits.mean()) if by_clip else math.nan,
            "copies": len(self.nearness.copies(limits)),
            "leaks": len(self.nearness.leaks(limits)),
            "twins": len(self.nearness.twins(limits)),
            "nearer_to_source": self.nearness.nearer_to_source,
            **{f"paper_{name}": value for name, value in paper.items()},
        }

    def by_class(self, names: Sequence[str]) -> dict[str, dict[str, float | int]]:
        """Figures of every class; those of distributions only of classes with enough images."""
        labels = self.image_set.labels
        recognised = self.judged.by_class(labels) if self.judged else {}
        found: dict[str, dict[str, float | int]] = {}
        for label in np.unique(labels).tolist():
            own = self.classes.get(label)
            figures = dataclasses.asdict(own) if own else {}
            figures.pop("p_value", None)
            found[names[label]] = {"images": int((labels == label).sum()), **figures}
            if label in recognised:
                found[names[label]]["recognised"] = recognised[label]
        return found

    def worst(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The classes with the worst figures, the worst first, by what is bad about them."""
        by_class = self.by_class(names)
        found = {}
        for figure, sign in (("kid", -1), ("coverage", 1), ("recognised", 1)):
            having = [name for name, figures in by_class.items() if _has(figures, figure)]
            having.sort(key=lambda name: sign * by_class[name][figure])  # noqa: B023
            found[figure] = having[:WORST]
        return found


def _has(figures: dict[str, Any], name: str) -> bool:
    return not math.isnan(figures.get(name, math.nan))


def evaluate(
    image_set: ImageSet,
    features: np.ndarray,
    real: Real,
    reference: Reference,
    judged: np.ndarray | None,
    by_clip: np.ndarray | None,
    with_paper: bool = True,
) -> Evaluation:
    """All figures of a set.

    Args:
        features: Of its images.
        reference: What it is compared with: the other half, for half of the real images.
        judged: Logits of classifiers of real images; None: there is none.
        by_clip: Logits of CLIP; None: the features are not CLIP's.
        with_paper: Whether the papers' columns make sense of it.
    """
    labels = image_set.labels
    sample = Sample(features, labels)
    images, measured = image_set.images, real.measured
    near = nearness(
        sample,
        real.train,
        real.test,
        measured.source_index(images),
        _own_place(images, measured.test),
    )
    return Evaluation(
        image_set,
        compare(sample, reference),
        compare_classes(sample, reference),
        near,
        real.limits,
        None if judged is None else recognition(judged, labels),
        None if by_clip is None else recognition(by_clip, labels),
        paper_figures(sample, real.paper) if with_paper else None,
    )


def _own_place(images: Sequence[ImageRecord], test: Sequence[ImageRecord]) -> np.ndarray:
    """Which of the test images each image is; -1: none of them."""
    places = {record.path: i for i, record in enumerate(test)}
    return np.array([-1 if r.source else places.get(r.path, -1) for r in images], dtype=np.int64)
