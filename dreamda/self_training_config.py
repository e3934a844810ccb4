"""Settings of self-training; imports no torch, so that `--help` is quick.

Where DreamDA's paper (sec. 4.3) names a value, the comment says so; the rest is open there and
chosen here, after SoftMatch (arXiv 2301.10921), UPS (2101.06329) and ATDA (1702.08400).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from expansion.config import option, require


@dataclass(frozen=True, kw_only=True)
class SoftMatchConfig:
    """Weighted consistency on images without trusted labels."""

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


@dataclass(frozen=True, kw_only=True)
class AmstConfig(SoftMatchConfig):
    """AMST, DreamDA's self-training: heads that vote on generated images, then consistency."""

    head_dropout: float = option(0.5, "dropout before every head, in all stages")
    ortho_weight: float = option(0.001, "lambda of the orthogonality term")  # paper
    ortho: str = option(
        "l1_cxc",
        "orthogonality of two heads' weights: L1 norm of the N x N products of class vectors, "
        "of the D x D product over D, or Frobenius norm of the cosines of class vectors",
        choices=("l1_cxc", "l1_dxd_mean", "fro_cosine"),
    )
    mc_passes: int = option(10, "T: dropout samples of each head")
    tau: float = option(0.01, "largest variance of an accepted label's probability")  # paper
    min_agree: int = option(4, "heads that must agree on an accepted label")  # paper: all four
    min_conf: float = option(0.0, "smallest mean probability of an accepted label; 0: off")
    # Not in the paper: the seed label as further evidence, instead of ignoring it.
    confirm_seed: bool = option(
        False, "also accept, however uncertain, an image whose seed label the heads vote for"
    )
    rounds: int = option(1, "times that the heads are trained and images accepted")
    stage1_share: float = option(
        0.5, "budget steps: share of the optimiser steps that trains the heads"
    )
    stage1_epochs: int | None = option(
        None, "budget epochs: passes over the real images in stage 1; default: --epochs"
    )
    reinit: bool = option(False, "stage 3 starts from new weights, not from stage 1's")
    consistency: bool = option(True, "learn from rejected images by consistency")
    multi_head: bool = option(
        True, "four heads that must agree; else one, tested for its uncertainty alone"
    )

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.head_dropout < 1, f"head_dropout {self.head_dropout}: give 0 to 1")
        require(self.ortho_weight >= 0, f"ortho_weight {self.ortho_weight}: give 0 or more")
        require(
            self.mc_passes > 1,
            f"mc_passes {self.mc_passes}: one sample has no variance; give 2 or more",
        )
        require(self.tau > 0, f"tau {self.tau}: give more than 0, or nothing is accepted")
        require(0 <= self.min_conf < 1, f"min_conf {self.min_conf}: give 0 to below 1")
        require(
            1 <= self.min_agree <= 4, f"min_agree {self.min_agree}: there are four heads, give 1-4"
        )
        require(
            0 < self.stage1_share < 1, f"stage1_share {self.stage1_share}: give between 0 and 1"
        )
        for name in ("rounds", "stage1_epochs"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} {value}: give a positive number")
