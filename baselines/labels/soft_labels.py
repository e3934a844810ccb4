"""Soft pseudo-labels (Arazo et al. 2020, arXiv 1908.02983), compared with in DreamDA's Table 8.

After a warm-up on real images every generated image has a soft label: what the classifier said of
it, un-augmented and without dropout, during the last pass over the generated images. Files of a
run: `warmup/` (a run folder of its own), then the run's usual files. The learning rate begins anew
after the warm-up, as in the authors' code.

Symbols: B batch, M generated images, N classes, p (B, N) predictions, y (B, N) labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather, pad_across_processes
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.labels.label_results import label_results
from baselines.labels.soft_labels_config import SoftLabelsConfig
from expansion.classifier.augmentations import AugmentedBatch
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe, split_budget
from expansion.classifier.transforms import eval_transform, train_transform
from expansion.common.errors import require
from expansion.common.seeding import stable_seed
from expansion.images.records import ImageRecord
from expansion.training.objectives import (
    Objective,
    Run,
    Supervised,
    TrainingImages,
    predict,
)
from expansion.training.trainer import Trainer, eval_loader


class LabelMemory:
    """Soft labels, and the predictions that take their place when a pass ends.

    Args:
        labels: (M, N) probabilities, to begin with.
    """

    def __init__(self, labels: Tensor):
        self.labels, self.predictions = labels, labels.clone()
        self.seen = 0  # predictions collected so far; M make a pass

    def collect(self, indices: Tensor, probabilities: Tensor) -> None:
        """Take in predictions, of all processes; the labels change only when M are complete.

        Args:
            indices: (B,), of the generated images.
            probabilities: (B, N).
        """
        indices = gather(pad_across_processes(indices, pad_index=-1)).cpu()
        probabilities = gather(pad_across_processes(probabilities)).cpu()
        real = indices >= 0  # not padding
        self.predictions[indices[real]] = probabilities[real]
        passes = self.seen // len(self.labels)
        self.seen += int(real.sum())
        if self.seen // len(self.labels) > passes:
            self.labels = self.predictions.clone()

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels, "predictions": self.predictions, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.labels, self.predictions = state["labels"], state["predictions"]
        self.seen = state["seen"]


class SoftLabels(Objective):
    """Soft cross-entropy on mixed real and generated images, with two regularisers.

    Args:
        images: Real ones keep their labels, generated ones learn theirs.
        labels: (M, N) soft labels to begin with.
        config: See `SoftLabelsConfig`.
        recipe: How this stage is trained.
        seed: Order and augmentation.
        steps_before: Optimiser steps of the warm-up.
    """

    def __init__(
        self,
        images: TrainingImages,
        labels: Tensor,
        config: SoftLabelsConfig,
        recipe: Recipe,
        *,
        seed: int,
        steps_before: int = 0,
    ):
        super().__init__(recipe, seed, len(images.real) + len(images.generated))
        self.images, self.config, self.steps_before = images, config, steps_before
        self.memory = LabelMemory(labels)
        self.augmented = AugmentedBatch(recipe, labels.shape[1])

    @classmethod
    def prepare(cls, images: TrainingImages, config: SoftLabelsConfig, run: Run) -> SoftLabels:
        """Warm up, or load what was warmed up before, and predict the first labels."""
        cls.check(run.recipe, config, run.accelerator.num_processes)
        warmup, recipe = _recipes(run.recipe, config)
        folder = run.run_dir / "warmup"
        folder.mkdir(exist_ok=True)
        seed, num_classes = stable_seed("warmup", run.seed), run.classifier.num_classes
        supervised = Supervised(images.real, warmup, seed, num_classes)
        trainer = Trainer(dataclasses.replace(run, run_dir=folder), supervised)
        trainer.fit_with_bar(run.progress_bar, "warm-up")
        labels = predict_all(trainer.module, images.generated, recipe, run.accelerator)
        steps = int(trainer.history[-1]["step"])
        return cls(images, labels, config, recipe, seed=run.seed, steps_before=steps)

    @classmethod
    def check(cls, recipe: Recipe, config: SoftLabelsConfig, num_processes: int) -> None:
        """Raise InputError where a process would get no real or no generated images."""
        size, least = recipe.batch_size, 2 * num_processes
        require(
            size >= least,
            f"batch_size {size}: real and generated images share it; give {least} or more",
        )
        _recipes(recipe, config)

    def batches(
        self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator
    ) -> Iterator[list[Tensor]]:
        """Real pixels and labels, then generated pixels, the same un-augmented, and indices."""
        world_size = accelerator.num_processes
        num_real = [self.num_labeled(size, world_size) for size in batch_sizes]
        num_generated = [size - count for size, count in zip(batch_sizes, num_real, strict=True)]
        transform, views = train_transform(self.recipe), WithPlainView(self.recipe)
        numbered = [dataclasses.replace(r, label=i) for i, r in enumerate(self.images.generated)]
        real = self.stream(self.images.real, transform, num_real, first, accelerator)
        generated = self.stream(numbered, views, num_generated, first, accelerator, "generated")
        for (pixels, targets), ((augmented, plain), indices) in zip(real, generated, strict=False):
            yield [pixels, targets, augmented, plain, indices]

    def num_labeled(self, batch_size: int, world_size: int = 1) -> int:
        """Real images of a batch: their share of all images, but no less than `min_labeled`.

        Every one of the processes gets at least one real and one generated image.
        """
        least = math.ceil(self.config.min_labeled * batch_size - 1e-9)  # 0.07 * 100 > 7
        share = len(self.images.real) / self.num_images
        wanted = max(least, round(share * batch_size), world_size)
        return min(wanted, batch_size - world_size)

    def loss(
        self, model: nn.Module, batch: Sequence[Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        pixels, targets, augmented, plain, indices = batch
        soft = self.memory.labels[indices.cpu()].to(pixels.device)
        self.memory.collect(indices, predict(model, plain))
        hard = F.one_hot(targets, soft.shape[1]).to(soft)
        pixels, labels = self.augmented.inputs(
            torch.cat([pixels, augmented]), torch.cat([hard, soft]), progress
        )
        pixels, labels = mixup(pixels, labels, self.config.mixup_alpha)
        logits = model(pixels)
        hits = logits.argmax(dim=1) == labels.argmax(dim=1)
        return soft_label_loss(logits, labels, self.config), hits

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)

    def results(self) -> Mapping[str, float]:
        """Figures of the most probable classes."""
        return label_results(self.images.generated, self.memory.labels.argmax(dim=1).tolist())


def _recipes(recipe: Recipe, config: SoftLabelsConfig) -> tuple[Recipe, Recipe]:
    """Recipes of the warm-up and of the rest."""
    return split_budget(recipe, share=config.warmup_share, epochs=config.warmup_epochs)


def soft_label_loss(logits: Tensor, labels: Tensor, config: SoftLabelsConfig) -> Tensor:
    """H(y, p) + prior_weight R_A + entropy_weight R_H (Arazo et al., Eq. 2-5); float32.

    H = -mean_i sum_c y_ic log p_ic, R_A = -sum_c (1/N) log(mean_i p_ic),
    R_H = -mean_i sum_c p_ic log p_ic. Against the paper's R_A a constant, log N, is missing.

    Args:
        logits: (B, N), of which p is the softmax.
        labels: (B, N), y; rows sum to 1.
    """
    log_p = logits.float().log_softmax(dim=1)
    cross_entropy = -(labels * log_p).sum(dim=1).mean()
    log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
    entropy = -(log_p.exp() * log_p).sum(dim=1).mean()
    prior = -log_mean.mean()
    return cross_entropy + config.prior_weight * prior + config.entropy_weight * entropy


def mixup(pixels: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """lambda x + (1 - lambda) x[order], of images (B, 3, H, W) and labels (B, N) alike.

    lambda ~ Beta(alpha, alpha), one for the batch; 0 changes nothing. Draws from torch's global
    generator, which the trainer seeds for every step.
    """
    if alpha == 0:
        return pixels, labels
    share = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample().item()
    order = torch.randperm(len(pixels)).to(pixels.device)
    return (
        share * pixels + (1 - share) * pixels[order],
        share * labels + (1 - share) * labels[order],
    )


class WithPlainView:
    """A PIL image as (augmented, plain) pixels, as the transforms of these names give them."""

    def __init__(self, recipe: Recipe):
        self.augment, self.plain = train_transform(recipe), eval_transform(recipe)

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        return self.augment(image), self.plain(image)


def predict_all(
    model: Classifier, records: Sequence[ImageRecord], recipe: Recipe, accelerator: Accelerator
) -> Tensor:
    """Probabilities (M, N) of un-augmented images, on the CPU; all processes share the work."""
    shares = [predict(model, pixels) for pixels, _ in eval_loader(records, recipe, accelerator)]
    everyone = torch.zeros(len(records), model.num_classes, device=accelerator.device)
    if shares:  # a process may have none
        everyone[accelerator.process_index :: accelerator.num_processes] = torch.cat(shares)
    return accelerator.reduce(everyone).cpu()
