"""Steps of the classic augmentations that `recipe.AUGMENTATIONS` declares, and their loss.

A step comes on top of rotation, crop and flip. It acts on an image in the loader, seeded per
sample, or on a batch on the device, seeded per optimiser step. Settings are those of DistDiff's
appendix B.4 where it gives any.

Symbols: B images, V views of each, N classes. Pixels are normalised, so 0 is the mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.functional import get_dimensions

from expansion.classifier.recipe import Recipe
from expansion.common.config import import_object

# (pixels, labels, share of the run that is done) -> pixels and labels; labels are class numbers
# (B,) or, once mixed, probabilities (B, N).
BatchStep = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

CUTOUT_SIDE = 0.5  # of the image's side: 112 of 224
GRID_SPACING = (96 / 224, 1.0)  # least and largest, of the image's side
GRID_KEPT = 0.6  # share of a spacing that stays visible along each axis
GRID_RAMP = 0.8  # share of the run after which the probability is full: 80 of 100 epochs
AUGMIX_CHAINS = 3


class Cutout(nn.Module):
    """A square of half the image's side becomes 0 (DeVries and Taylor 2017, arXiv 1708.04552).

    Its centre is uniform over the image, so that part of the square may lie outside.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        _, height, width = get_dimensions(pixels)
        y, x = torch.randint(height, ()).item(), torch.randint(width, ()).item()
        side = round(CUTOUT_SIDE * min(height, width))
        top, left = y - side // 2, x - side // 2
        pixels = pixels.clone()
        pixels[..., max(0, top) : top + side, max(0, left) : left + side] = 0
        return pixels


def grid_mask(height: int, width: int, spacing: Tensor, angle: Tensor, offset: Tensor) -> Tensor:
    """1 where a pixel stays, 0 in the grid's squares: (B, H, W), float.

    A square of side d - ceil(0.6 d) in every cell of side d, after a rotation about the image's
    centre (GridMask, arXiv 2001.04086; mode 1 of its code).

    Args:
        spacing: (B,), d in pixels, whole numbers.
        angle: (B,), radians.
        offset: (B, 2), where the grid begins, in spacings.
    """
    y = torch.arange(height).view(1, -1, 1) - (height - 1) / 2
    x = torch.arange(width).view(1, 1, -1) - (width - 1) / 2
    cos, sin, d = (v.view(-1, 1, 1) for v in (angle.cos(), angle.sin(), spacing))
    bar = (GRID_KEPT * d).ceil()
    inside = [
        torch.remainder(along + offset[:, axis].view(-1, 1, 1) * d, d) >= bar
        for axis, along in enumerate((cos * y - sin * x, sin * y + cos * x))
    ]
    return 1 - (inside[0] & inside[1]).float()


def randaugment(recipe: Recipe) -> nn.Module:
    """RandAugment (arXiv 1909.13719), torchvision's."""
    return v2.RandAugment(recipe.randaugment_ops, recipe.randaugment_magnitude)


def autoaugment(recipe: Recipe) -> nn.Module:
    """AutoAugment (arXiv 1805.09501) by the policy found on ImageNet."""
    return v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)


def augmix(recipe: Recipe) -> nn.Module:
    """AugMix (arXiv 1912.02781): alpha 1, chains of one to three operations of severity up to 3.

    No brightness, colour, contrast or sharpness, as in that paper.
    """
    return v2.AugMix(mixture_width=AUGMIX_CHAINS, alpha=1.0, all_ops=False)


def random_erasing(recipe: Recipe) -> nn.Module:
    """Random erasing (arXiv 1708.04896): a rectangle becomes the mean colour."""
    return v2.RandomErasing(recipe.probability, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0)


def cutout(recipe: Recipe) -> nn.Module:
    """See `Cutout`."""
    return Cutout()


def gridmask(recipe: Recipe, num_classes: int) -> BatchStep:
    """GridMask on a batch; its probability rises linearly over the first 80 % of the run."""

    def step(pixels: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        count, (height, width) = len(pixels), pixels.shape[-2:]
        low, high = (round(share * min(height, width)) for share in GRID_SPACING)
        mask = grid_mask(
            height,
            width,
            spacing=torch.randint(low, high, (count,)).float(),
            angle=2 * math.pi * torch.rand(count),
            offset=torch.rand(count, 2),
        )
        spared = torch.rand(count) >= recipe.probability * min(1.0, progress / GRID_RAMP)
        mask[spared] = 1
        return pixels * mask[:, None].to(pixels), labels

    return step


def mixup(recipe: Recipe, num_classes: int) -> BatchStep:
    """MixUp (arXiv 1710.09412): one share per batch, each image with its predecessor."""
    mix = v2.MixUp(alpha=recipe.mix_alpha, num_classes=num_classes)
    return lambda pixels, labels, progress: mix(pixels, labels)


def cutmix(recipe: Recipe, num_classes: int) -> BatchStep:
    """CutMix (arXiv 1905.04899): one box per batch; the labels' share is the box's area."""
    mix = v2.CutMix(alpha=recipe.mix_alpha, num_classes=num_classes)
    sometimes = v2.RandomApply([mix], p=recipe.probability)
    return lambda pixels, labels, progress: sometimes(pixels, labels)


def steps_on(acts_on: str, recipe: Recipe) -> list[nn.Module]:
    """What the recipe's augmentation does in the loader; nothing if it acts on something else.

    Args:
        acts_on: "image" or "pixels", see `Augmentation`.
        recipe: Names the augmentation.
    """
    return [_maker(recipe)(recipe)] if recipe.augmentation.acts_on == acts_on else []


def _maker(recipe: Recipe) -> Callable:
    """The function above that the recipe's augmentation names."""
    return import_object(f"{__name__}:{recipe.augment}")


class AugmentedBatch:
    """What a batch of labelled images becomes, and the loss of the logits that it gives.

    Args:
        recipe: Names the augmentation and the label smoothing.
        num_classes: N.
    """

    def __init__(self, recipe: Recipe, num_classes: int):
        self.recipe = recipe
        arm = recipe.augmentation
        self.num_views = arm.num_views
        self.step: BatchStep | None = None
        if arm.acts_on == "batch":
            self.step = _maker(recipe)(recipe, num_classes)

    def inputs(self, pixels: Tensor, targets: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Images (V B, 3, H, W) for the network, view by view, and labels (B,) or (B, N).

        Draws from torch's global generator, which the trainer seeds for every step.

        Args:
            pixels: (B, 3, H, W), or (B, V, 3, H, W) of several views.
            targets: (B,) class numbers, or (B, N) probabilities.
            progress: Share of the run that is done, 0 to 1.
        """
        if self.num_views > 1:
            pixels = pixels.transpose(0, 1).flatten(0, 1)
        if self.step is None:
            return pixels, targets
        return self.step(pixels, targets, progress)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the first view; of several, plus the weighted divergence of all.

        Args:
            logits: (V B, N) of `inputs`.
            labels: (B,) or (B, N) of `inputs`.
        """
        views = logits.chunk(self.num_views)
        loss = F.cross_entropy(views[0], labels, label_smoothing=self.recipe.label_smoothing)
        if self.num_views > 1:
            loss = loss + self.recipe.jsd_weight * jensen_shannon(torch.stack(views))
        return loss

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether each image's (heaviest) label is the prediction on its first view: (B,) bool."""
        targets = labels.argmax(dim=1) if labels.ndim == 2 else labels
        return logits[: len(labels)].argmax(dim=1) == targets


def jensen_shannon(logits: Tensor) -> Tensor:
    """mean_i[ mean_v KL(p_vi || M_i) ], M_i = mean_v p_vi: 0 to log V (AugMix, Eq. 3); float32.

    Args:
        logits: (V, B, N), of which p is the softmax.
    """
    log_p = logits.float().log_softmax(dim=-1)
    log_mixture = (log_p.logsumexp(dim=0) - math.log(len(log_p))).expand_as(log_p)
    divergence = F.kl_div(log_mixture, log_p, reduction="none", log_target=True).sum(dim=-1)
    return divergence.mean()
