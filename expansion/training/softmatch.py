"""SoftMatch (Chen et al. 2023, arXiv 2301.10921): learning from images without trusted labels.

An image's pseudo-label is the prediction on its weak view; the prediction on its strong view is
pulled towards it, with a weight that is a truncated Gaussian of the confidence. AMST's last stage
and semi-supervised training share everything here.

Symbols: p (B, N) probabilities of weak views, q the same after distribution alignment, mu and v
running mean and variance of max q, lambda the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather, pad_across_processes
from torch import Tensor, nn
from torch.nn import functional as F

from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import plain_transform, strong_transform
from expansion.images.records import ImageRecord
from expansion.training.mixing import NATURAL, Mixing
from expansion.training.objectives import Run, Supervised, TrainingImages, predict
from expansion.training.softmatch_config import SoftMatchConfig

# Confidences, float32, that differ by no more than this are equal: the rest is rounding.
SMALLEST_DEVIATION = 16 * torch.finfo(torch.float32).eps


class SoftMatchWeights:
    """Weights of pseudo-labels, from running statistics of their confidence.

    Args:
        num_classes: N.
        config: Momentum, width, largest weight.
        target: (N,) class distribution that predictions are aligned with; None: no alignment.
    """

    def __init__(self, num_classes: int, config: SoftMatchConfig, target: Tensor | None):
        self.config, self.target = config, target
        self.mean = torch.tensor(1 / num_classes)
        self.variance = torch.tensor(1.0)
        self.model_prior: Tensor | None = None
        self.num_batches = 0
        self.num_images = 0  # of the last batch, in all processes

    @torch.no_grad()
    def __call__(self, probabilities: Tensor) -> Tensor:
        """Weights (B,) in [0, max_weight]; the statistics first take in this batch.

        SoftMatch Eq. 5-9: lambda = max_weight exp(-(min(max q - mu, 0))^2 n_sigma^2 / (2 v)). Where
        v vanishes, as on a fresh network that finds every image equally likely, this is its limit:
        max_weight at mu and above, 0 below.

        Args:
            probabilities: (B, N) of weak views, not aligned; B may differ between processes.
        """
        m = self.config.statistics_momentum
        if self.config.statistics_warmup:
            m = min(m, self.num_batches / (self.num_batches + 1))
        self.num_batches += 1
        everyone = of_all_processes(probabilities)  # so that they weigh alike
        self.num_images = len(everyone)
        self._update_prior(everyone, m)
        confidences = self.align(everyone).amax(dim=1)
        confidences = _doubled(confidences)  # a running mean of equal values is to be that value
        self.mean = m * self.mean.to(confidences) + (1 - m) * confidences.mean()
        self.variance = self.variance.to(confidences)
        if len(confidences) > 1:
            self.variance = m * self.variance + (1 - m) * confidences.var()
        below = (_doubled(self.align(probabilities).amax(dim=1)) - self.mean).clamp(max=0)
        variance = self.variance.clamp(min=SMALLEST_DEVIATION**2)
        exponent = -(below**2) * self.config.n_sigma**2 / (2 * variance)
        return (self.config.max_weight * exponent.exp()).to(probabilities)

    def align(self, probabilities: Tensor) -> Tensor:
        """q = Normalize(p target / model prior): (B, N); labels are never taken from it."""
        if self.target is None or self.model_prior is None:
            return probabilities
        # 1e-6 as in SoftMatch's code: a class that is never predicted divides by no zero.
        ratio = (self.target.to(probabilities) + 1e-6) / (self.model_prior + 1e-6)
        aligned = probabilities * ratio
        return aligned / aligned.sum(dim=1, keepdim=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "variance": self.variance,
            "model_prior": self.model_prior,
            "num_batches": self.num_batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.variance = state["mean"], state["variance"]
        self.model_prior, self.num_batches = state["model_prior"], state["num_batches"]

    def _update_prior(self, probabilities: Tensor, m: float) -> None:
        mean = probabilities.mean(dim=0)
        if self.model_prior is None:
            self.model_prior = mean
        else:
            self.model_prior = m * self.model_prior.to(mean.device) + (1 - m) * mean


def _doubled(values: Tensor) -> Tensor:
    """The values in float64; on the CPU for MPS, which has no such numbers."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def of_all_processes(rows: Tensor) -> Tensor:
    """Non-negative rows (B, N) of every process one below the other; B may differ."""
    everyone = gather(pad_across_processes(rows, pad_index=-1))
    return everyone if PartialState().num_processes == 1 else everyone[everyone[:, 0] >= 0]


def consistency_loss(probabilities: Tensor, logits: Tensor, weights: Tensor, target: str) -> Tensor:
    """mean_i[ lambda_i H(target_i, prediction on the strong view) ] (DreamDA Eq. 9).

    Args:
        probabilities: (B, N) of weak views, without gradient.
        logits: (B, N) of strong views.
        weights: (B,), lambda.
        target: "hard": the most probable class; "soft": the probabilities themselves.
    """
    targets = probabilities.argmax(dim=1) if target == "hard" else probabilities
    return (weights * F.cross_entropy(logits, targets, reduction="none")).mean()


class SoftMatch(Supervised):
    """Cross-entropy on labelled images plus weighted consistency on unlabelled ones (Eq. 8-9).

    Args:
        labeled: Images whose labels are believed.
        unlabeled: The others; may be empty.
        config: See `SoftMatchConfig`.
        recipe: Optimiser and preprocessing; its batch size counts labelled images, and its
            augmentation acts on them alone: the views of the others are SoftMatch's.
        num_classes: N.
        seed: Order and augmentation.
        head_dropout: Dropout before the classifier's head while training.
        mixing: How the labelled part of a batch is made up of real and generated images.
    """

    def __init__(
        self,
        labeled: Sequence[ImageRecord],
        unlabeled: Sequence[ImageRecord],
        config: SoftMatchConfig,
        recipe: Recipe,
        *,
        num_classes: int,
        seed: int,
        head_dropout: float = 0.0,
        mixing: Mixing = NATURAL,
    ):
        super().__init__(labeled, recipe, seed, num_classes, mixing)
        self.unlabeled, self.config, self.head_dropout = unlabeled, config, head_dropout
        self.ema_decay = config.ema_decay
        counts = torch.bincount(torch.tensor([r.label for r in labeled]), minlength=num_classes)
        target = {
            "uniform": torch.full((num_classes,), 1 / num_classes),
            "train_prior": counts / counts.sum(),
            "off": None,
        }[config.alignment]
        self.weights = SoftMatchWeights(num_classes, config, target)
        self.unlabeled_share = config.unlabeled_share(self.num_images, len(unlabeled))

    @classmethod
    def prepare(cls, images: TrainingImages, config: Any, run: Run) -> SoftMatch:
        """Semi-supervised training: real and generated images are labelled, others are not.

        An epoch goes at least once through either.
        """
        labeled = [*images.real, *images.generated]
        objective = cls(
            labeled,
            images.unlabeled,
            config,
            run.recipe,
            num_classes=run.classifier.num_classes,
            seed=run.seed,
            mixing=images.mixing,
        )
        objective.num_images = config.epoch_images(objective.num_images, len(images.unlabeled))
        return objective

    def wrap(self, classifier: Classifier) -> nn.Module:
        return HeadDropout(classifier, self.head_dropout) if self.head_dropout else classifier

    def batches(
        self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator
    ) -> Iterator[Sequence[Tensor]]:
        labeled = super().batches(batch_sizes, first, accelerator)
        if not self.unlabeled:
            yield from labeled
            return
        views = TwoViews(self.recipe, self.config.strong_ops)
        sizes = self.unlabeled_sizes(batch_sizes, accelerator.num_processes)
        unlabeled = self.stream(self.unlabeled, views, sizes, first, accelerator, "unlabeled")
        for (pixels, targets), ((weak, strong), _) in zip(labeled, unlabeled, strict=False):
            yield [pixels, targets, weak, strong]

    def unlabeled_sizes(self, batch_sizes: Sequence[int], world_size: int) -> list[int]:
        """Unlabelled images of every batch; each process gets at least one."""
        return [max(world_size, round(self.unlabeled_share * size)) for size in batch_sizes]

    def loss(
        self, model: nn.Module, batch: Sequence[Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        if not self.unlabeled:
            return super().loss(model, batch, progress)
        pixels, targets, weak, strong = batch
        inputs, labels = self.augmented.inputs(pixels, targets, progress)
        # Not in train mode as in SoftMatch's code: a pseudo-label should not vary with dropout.
        probabilities = predict(model, weak)
        logits, strong_logits = model(torch.cat([inputs, strong])).split([len(inputs), len(strong)])
        weights = self.weights(probabilities)
        supervised = self.augmented.loss(logits, labels)
        consistency = consistency_loss(probabilities, strong_logits, weights, self.config.target)
        weight = self.config.consistency_weight * self.unlabeled_share / self.config.unlabeled_ratio
        # The mean of the processes' losses becomes the mean over all images, in equal parts or not.
        weight *= len(weak) * PartialState().num_processes / self.weights.num_images
        loss = supervised + weight * consistency
        return loss, self.augmented.hits(logits, labels)

    def state_dict(self) -> dict[str, Any]:
        return self.weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state)


class TwoViews:
    """A PIL image as (weak, strong) pixels (H, W, 3), uint8; the strong one starts anew.

    The weak one is rotated, cropped and flipped, whatever `recipe.augment` says.
    """

    def __init__(self, recipe: Recipe, num_ops: int):
        self.weak, self.strong = plain_transform(recipe), strong_transform(recipe, num_ops)

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        return self.weak(image), self.strong(image)


class HeadDropout(nn.Module):
    """A classifier with dropout between features and head while training."""

    def __init__(self, classifier: Classifier, dropout: float):
        super().__init__()
        self.classifier, self.dropout = classifier, nn.Dropout(dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier.head(self.dropout(self.classifier.features(pixels)))
