"""Settings of SoftMatch; imports no torch, so that `--help` is quick.

The defaults that are not SoftMatch's own (arXiv 2301.10921) are chosen for sets of a few hundred
images, and for AMST, DreamDA's self-training, which ends with SoftMatch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import require


@dataclass(frozen=True, kw_only=True)
class SoftMatchConfig:
    """Weighted consistency on images without trusted labels."""

    fixed_epoch: ClassVar[bool] = True  # its length is known before the training

    # SoftMatch uses 7, for unlabelled sets that dwarf the labelled one.
    unlabeled_ratio: float = option(1.0, "unlabelled images per labelled one in a batch")
    target: str = option(
        "hard",
        "what the strong view should predict: the weak view's most probable class, or its "
        "probabilities",
        choices=("hard", "soft"),
    )
    alignment: str = option(
        "uniform",
        "class distribution that confidences (never labels) are aligned with: uniform, that of "
        "the labelled images, or off",
        choices=("uniform", "train_prior", "off"),
    )
    statistics_momentum: float = option(0.999, "of SoftMatch's running mean and variance")
    # SoftMatch runs 2^20 steps; in a few hundred its start values 1/N and 1 would never fade, and
    # all weights be 1.
    statistics_warmup: bool = option(
        True, "running statistics are plain means while that is quicker than their momentum"
    )
    n_sigma: float = option(2.0, "weights fall off n_sigma times faster than confidences spread")
    max_weight: float = option(1.0, "weight of a confident pseudo-label")
    consistency_weight: float = option(1.0, "factor on the consistency loss")
    # The paper says RandAugment; 3 operations, as USB takes for STL-10.
    strong_ops: int = option(3, "operations of the strong view's RandAugment, then Cutout")
    ema_decay: float = option(
        0.0,
        "decay of the running mean of the weights per optimiser step, which is then evaluated and "
        "saved in their place: about the last 1 / (1 - decay) steps count, so give 0.99 for a few "
        "hundred; batch statistics are the last ones, as in SoftMatch's code (0.999); 0: off",
        added_later=True,
    )

    def __post_init__(self):
        require(
            self.unlabeled_ratio > 0,
            f"unlabeled_ratio {self.unlabeled_ratio}: give more than 0",
        )
        require(
            0 <= self.statistics_momentum < 1,
            f"statistics_momentum {self.statistics_momentum}: give 0 to below 1",
        )
        for name in ("n_sigma", "max_weight", "consistency_weight"):
            value = getattr(self, name)
            require(value >= 0, f"{name} {value}: give 0 or more")
        require(0 <= self.ema_decay < 1, f"ema_decay {self.ema_decay}: give 0 to below 1")
        require(self.strong_ops > 0, f"strong_ops {self.strong_ops}: give at least 1")

    def unlabeled_share(self, num_labeled: int, num_unlabeled: int) -> float:
        """Unlabelled images per labelled one in a batch.

        A small rest is not gone through faster than the labelled images, or its few, often wrong,
        pseudo-labels would rule.
        """
        return min(self.unlabeled_ratio, num_unlabeled / num_labeled)

    def epoch_images(self, num_labeled: int, num_unlabeled: int) -> int:
        """Labelled images of an epoch of semi-supervised training, repeated where they are few.

        So many that no unlabelled image is left out: 40 labelled images beside 100,000 would end
        after 4,000 of these if an epoch were a pass over the 40.
        """
        return max(num_labeled, math.ceil(num_unlabeled / self.unlabeled_ratio))

    def passes(self, num_labeled: int, num_unlabeled: int, num_seen: int) -> str:
        """How often unlabelled images are gone through beside `num_seen` labelled ones."""
        passes = num_seen * self.unlabeled_share(num_labeled, num_unlabeled) / num_unlabeled
        few = "" if passes >= 1 else "; give more steps to see them all"
        return f"unlabelled images: {num_unlabeled}, gone through {passes:.3g} times{few}"
