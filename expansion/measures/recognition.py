"""Label fidelity: whether classifiers of real images take generated ones for their class.

A high share alone is no praise: copies of the real images are recognised best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recognition:
    """What a classifier says of the images of a set.

    Attributes:
        own: Probability of their own class, (M,).
        predicted: Most probable class, (M,).
        entropy: Of the probabilities, in nats, (M,): 0 is certain, log N is a guess.
        hits: Whether the most probable class is their own, (M,).
    """

    own: np.ndarray
    predicted: np.ndarray
    entropy: np.ndarray
    hits: np.ndarray

    def by_class(self, labels: np.ndarray) -> dict[int, float]:
        """Share of each class that is recognised."""
        return {int(c): float(self.hits[labels == c].mean()) for c in np.unique(labels)}


def recognition(logits: np.ndarray, labels: np.ndarray) -> Recognition:
    """From logits (M, N) and labels (M,)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_probabilities = shifted - log_sum
    probabilities = np.exp(log_probabilities)
    predicted = logits.argmax(axis=1)
    return Recognition(
        probabilities[np.arange(len(labels)), labels],
        predicted,
        np.maximum(-(probabilities * log_probabilities).sum(axis=1), 0.0),
        predicted == labels,
    )
