"""What GIF-SD raises: informative, of its class still, and unlike the other variants.

s and s' are CLIP's class probabilities of a real image and of its variants i, f_i the variants'
unit-length features and f their mean, j the class to keep, H the entropy. With GIF's section 4:
Score = mean_i (H(s'_i) - H(s)) + mean_i s'_i[j] + mean_i KL(softmax(f) || softmax(f_i)).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """The parts of the score of each variant of a group, (B,); their mean sum is the score.

    Attributes:
        information: H(s'_i) - H(s).
        probability: s'_i[j].
        divergence: How far the variant is from the others.
    """

    information: Tensor
    probability: Tensor
    divergence: Tensor

    @property
    def total(self) -> Tensor:
        """(B,): its mean over a group is the group's score."""
        return self.information + self.probability + self.divergence

    def detached(self) -> Terms:
        """The same values without their gradients."""
        parts = self.information, self.probability, self.divergence
        return Terms(*(part.detach() for part in parts))


def score_terms(
    features: Tensor, logits: Tensor, real_entropy: Tensor, kept: Tensor, divergence: str
) -> Terms:
    """The score of a group of variants of one real image, differentiable.

    Args:
        features: Unit length, (B, D).
        logits: Of the classes, (B, N), times CLIP's scale.
        real_entropy: H(s) of the real image of each variant, (B,).
        kept: j, the class to keep for each variant, (B,).
        divergence: "paper", or "released" for what the authors' code computes.
    """
    probabilities = logits.softmax(dim=1)
    return Terms(
        entropy(logits) - real_entropy,
        probabilities.gather(1, kept[:, None])[:, 0],
        divergence_to_mean(features) if divergence == "paper" else released_divergence(features),
    )


def entropy(logits: Tensor) -> Tensor:
    """The entropy, in nats, of class probabilities (B,) that logits (B, N) give.

    The product is taken with the logarithm of the softmax, so that a probability of 0 adds 0 and
    not NaN.
    """
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def divergence_to_mean(features: Tensor) -> Tensor:
    """KL(softmax(f) || softmax(f_i)), (B,), f the mean of the features (B, D); 0 for one alone.

    As they have unit length and D dimensions, it is about |f_i - f|^2 / 2D: 0.001 at most for
    CLIP's 512.
    """
    logs = features.log_softmax(dim=1)
    mean = features.mean(dim=0, keepdim=True).log_softmax(dim=1)
    return (mean.exp() * (mean - logs)).sum(dim=1)


def released_divergence(features: Tensor) -> Tensor:
    """-logsumexp(f), the same for all B: what the authors' code has in place of the divergence.

    It compares the softmax of the mean with the mean itself, so no two variants are compared; a
    group of one has it too. f is the mean of the features (B, D).
    """
    return -torch.logsumexp(features.mean(dim=0), dim=0).expand(len(features))
