"""AMST, DreamDA's self-training (arXiv 2403.12803 sec. 4.3, Eq. 7-9), from the paper.

Stage 1 trains four auxiliary heads on real images, two on weak and two on strong views. Stage 2
lets them vote on every generated image, with dropout on: where all agree and none is uncertain the
image is accepted under that label, whatever image it was made from. Stage 3 trains the classifier
on real + accepted images, and by weighted consistency (`expansion/training/softmatch.py`) on the
rejected.

Symbols: B batch, N classes, D features, A heads, T dropout samples, u_a the variance over t of
head a's probability for its label, tau the largest u accepted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from dreamda.self_training.config import AmstConfig
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.common.seeding import stable_seed
from expansion.images.records import ImageRecord
from expansion.training.objectives import Objective, images_in_order
from expansion.training.softmatch import TwoViews


class MultiHead(nn.Module):
    """A classifier's backbone with auxiliary heads, each `Dropout -> Linear(D, N)`.

    Args:
        classifier: Its body is shared; its own head is left alone.
        views: View that each head is trained on, "weak" or "strong".
        dropout: Dropout before each head.
    """

    def __init__(self, classifier: Classifier, views: Sequence[str], dropout: float):
        super().__init__()
        width = classifier.head.in_features
        self.body = classifier.body
        self.views = tuple(views)
        self.dropout = dropout
        self.heads = nn.ModuleList(nn.Linear(width, classifier.num_classes) for _ in views)

    def forward(self, pixels: Tensor) -> Tensor:
        """Training: logits (A, B, N) of weak views (B) followed by strong views (B).

        Evaluation: log of the heads' mean probability, (B, N).
        """
        features = self.body(pixels)
        if not self.training:
            logits = torch.stack([head(features) for head in self.heads])
            # Not the log of a mean, which is infinite where a probability is too small for a float.
            log_p = logits.float().log_softmax(dim=-1)
            return log_p.logsumexp(dim=0) - math.log(len(log_p))
        weak, strong = features.chunk(2)
        by_view = {"weak": weak, "strong": strong}
        return torch.stack(
            [
                head(F.dropout(by_view[view], self.dropout))
                for head, view in zip(self.heads, self.views, strict=True)
            ]
        )

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Weights (N, D) of the heads that learn from equal views, two by two."""
        weights = [head.weight for head in self.heads]
        by_view = {
            view: [w for w, v in zip(weights, self.views, strict=True) if v == view]
            for view in self.views
        }
        return [(group[0], group[1]) for group in by_view.values() if len(group) == 2]


def orthogonality(first: Tensor, second: Tensor, form: str) -> Tensor:
    """|W1^T W2| of Eq. 7 in one of three readings; float32.

    Args:
        first: (N, D), one row per class; `second` likewise.
        form: "l1_cxc": sum of |W1 W2^T| (N, N). "l1_dxd_mean": sum of |W1^T W2| (D, D) over D.
            "fro_cosine": Frobenius norm of the rows' cosines (N, N).
    """
    first, second = first.float(), second.float()
    if form == "l1_cxc":
        return (first @ second.T).abs().sum()
    if form == "l1_dxd_mean":
        return (first.T @ second).abs().sum(dim=0).mean()
    return torch.linalg.norm(F.normalize(first) @ F.normalize(second).T)


class HeadTraining(Objective):
    """Stage 1 (Eq. 7): cross-entropy of every head on its view, plus lambda |W1^T W2| per pair."""

    def __init__(
        self, records: Sequence[ImageRecord], config: AmstConfig, recipe: Recipe, seed: int
    ):
        super().__init__(recipe, seed, len(records))
        self.records, self.config = records, config
        self.module: MultiHead | None = None

    def wrap(self, classifier: Classifier) -> MultiHead:
        views = ("weak", "weak", "strong", "strong") if self.config.multi_head else ("weak",)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed("heads", self.seed))
            self.module = MultiHead(classifier, views, self.config.head_dropout)
        return self.module

    def batches(self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator):
        views = TwoViews(self.recipe, self.config.strong_ops)
        stream = self.stream(self.records, views, batch_sizes, first, accelerator)
        for (weak, strong), targets in stream:
            yield [weak, strong, targets]

    def loss(
        self, model: nn.Module, batch: Sequence[Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        weak, strong, targets = batch
        logits = model(torch.cat([weak, strong]))  # (A, B, N)
        smoothing = self.recipe.label_smoothing
        supervised = sum(
            F.cross_entropy(head_logits, targets, label_smoothing=smoothing)
            for head_logits in logits
        )
        orthogonal = sum(
            orthogonality(first, second, self.config.ortho) for first, second in self.module.pairs()
        )
        hits = logits.softmax(dim=-1).mean(dim=0).argmax(dim=1) == targets
        return supervised + self.config.ortho_weight * orthogonal, hits


@dataclass(frozen=True)
class Votes:
    """What the heads say of M images, all (M,).

    Attributes:
        labels: Most probable class of all heads' mean.
        agreement: Heads whose own label that is.
        uncertainty: Largest u_a of those heads (of all, if none agrees).
        confidence: Mean probability of the label, over those heads and dropout samples.
    """

    labels: Tensor
    agreement: Tensor
    uncertainty: Tensor
    confidence: Tensor

    def accepted(self, config: AmstConfig, num_heads: int, seed_labels: Tensor) -> Tensor:
        """(M,) bool: enough heads agree, u < tau and, if asked, enough confidence.

        With `confirm_seed` an image needs only the heads' agreement on its seed label instead.

        Args:
            seed_labels: (M,), the labels that the images came with.
        """
        enough = self.agreement >= min(config.min_agree, num_heads)
        trusted = (self.uncertainty < config.tau) & (self.confidence >= config.min_conf)
        if config.confirm_seed:
            trusted |= self.labels == seed_labels
        return enough & trusted


def count_votes(probabilities: Tensor) -> Votes:
    """Votes from dropout samples.

    u_a = Var_t p_a,t[label_a] (population variance), label_a = argmax of mean_t p_a,t.

    Args:
        probabilities: (A, T, M, N).
    """
    means = probabilities.mean(dim=1)  # (A, M, N)
    own_labels = means.argmax(dim=-1)  # (A, M)
    index = own_labels[:, None, :, None].expand(-1, probabilities.shape[1], -1, 1)
    of_own = probabilities.gather(-1, index)[..., 0]  # (A, T, M)
    variances = of_own.var(dim=1, unbiased=False)  # (A, M)
    labels = means.mean(dim=0).argmax(dim=-1)
    agree = own_labels == labels
    agreement = agree.sum(dim=0)
    counted = agree | (agreement == 0)
    confidence = means.gather(-1, labels.expand(len(means), -1)[..., None])[..., 0]
    return Votes(
        labels=labels,
        agreement=agreement,
        uncertainty=torch.where(counted, variances, 0).amax(dim=0),
        confidence=(confidence * counted).sum(dim=0) / counted.sum(dim=0),
    )


@torch.no_grad()
def dropout_votes(
    module: MultiHead,
    records: Sequence[ImageRecord],
    config: AmstConfig,
    recipe: Recipe,
    seed: int,
    progress: Callable[[int, Mapping[str, float]], None] = lambda count, row: None,
) -> Votes:
    """Stage 2: votes of the heads on `records`, un-augmented, with dropout before the heads alone.

    Features are computed once; batch normalisation keeps its running statistics.

    Args:
        seed: Of the dropout masks.
        progress: Called with the number of images done.
    """
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    generator = torch.Generator("cpu").manual_seed(seed)
    keep = 1 - module.dropout
    votes = []
    for pixels, _ in images_in_order(records, recipe, device):
        features = module.body(pixels).float()
        shape = (len(module.heads), config.mc_passes, *features.shape)
        masks = torch.rand(shape, generator=generator).lt(keep).to(device) / keep
        dropped = features * masks  # (A, T, B, D)
        logits = torch.stack([head(f) for head, f in zip(module.heads, dropped, strict=True)])
        votes.append(count_votes(logits.softmax(dim=-1)))
        progress(sum(len(v.labels) for v in votes), {})
    module.train(was_training)
    columns = [field.name for field in dataclasses.fields(Votes)]
    return Votes(**{c: torch.cat([getattr(v, c) for v in votes]).cpu() for c in columns})
