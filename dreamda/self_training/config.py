"""Settings of self-training; imports no torch, so that `--help` is quick.

Where DreamDA's paper (sec. 4.3) names a value, the comment says so; the rest is open there and
chosen here, after SoftMatch (arXiv 2301.10921), UPS (2101.06329) and ATDA (1702.08400).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import require
from expansion.training.softmatch_config import SoftMatchConfig


@dataclass(frozen=True, kw_only=True)
class AmstConfig(SoftMatchConfig):
    """AMST, DreamDA's self-training: heads that vote on generated images, then consistency."""

    fixed_epoch: ClassVar[bool] = False  # stage 3 trains on as many images as are accepted

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

    def passes(self, num_labeled: int, num_unlabeled: int, num_seen: int) -> str:
        """What becomes of the unlabelled images; how often depends on what is accepted."""
        return f"unlabelled images: {num_unlabeled}, beside rejected generated ones in stage 3"
