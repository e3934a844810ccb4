"""Settings of soft pseudo-labels; imports no torch, so that `--help` is quick.

The values are those of Arazo et al. (arXiv 1908.02983) and their code.
"""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require


@dataclass(frozen=True, kw_only=True)
class SoftLabelsConfig:
    """Soft labels of generated images, by the classifier in training."""

    warmup_share: float = option(
        0.1, "budget steps: share of the optimiser steps that trains on real images alone first"
    )
    warmup_epochs: int = option(
        10, "budget epochs: passes over the real images before the other ones"
    )
    prior_weight: float = option(
        0.8, "factor on the term that keeps the mean prediction of a batch near uniform"
    )
    entropy_weight: float = option(0.4, "factor on the mean entropy of the predictions")
    mixup_alpha: float = option(
        1.0, "images and labels are mixed by shares from Beta(alpha, alpha); 0: off"
    )
    # 16 of 100 in the paper.
    min_labeled: float = option(0.16, "smallest share of real images in every batch")

    def __post_init__(self):
        for name in ("warmup_share", "min_labeled"):
            value = getattr(self, name)
            require(0 < value < 1, f"{name} {value}: give a share between 0 and 1")
        require(self.warmup_epochs > 0, f"warmup_epochs {self.warmup_epochs}: give at least 1")
        for name in ("prior_weight", "entropy_weight", "mixup_alpha"):
            value = getattr(self, name)
            require(value >= 0, f"{name} {value}: give 0 or more")
