"""How a classifier is trained: the recipe's schema and its schedule. Imports no torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import require

LARGEST_ADAMW_LR = 0.05  # beyond it nothing trains; the papers' commands give SGD's 0.1
# Backbones whose residual blocks end in a batch normalisation that can start at zero.
RESIDUAL = ("resnet", "resnext", "wide_resnet", "wideresnet")


@dataclass(frozen=True)
class Augmentation:
    """A classic augmentation of labelled images, as far as it can be said without torch.

    The function of its name in `augmentations.py` makes its step: of the recipe and, for a batch,
    of the number of classes.

    Attributes:
        title: For people.
        acts_on: "image" (Pillow's, after crop and flip) or "pixels" (normalised, of one image): in
            the loader. "batch": on the device. "" if there is no step.
        probability: Share of images (CutMix: of batches) that it acts on, if that can be chosen.
        num_views: Times that an image is looked at; the first is a plain one, if they are several.
        pairs: Whether each image is mixed with another one of its batch.
        changes_loss: Whether it changes labels or loss, and not images alone.
    """

    title: str = ""
    acts_on: str = ""
    probability: float | None = None
    num_views: int = 1
    pairs: bool = False
    changes_loss: bool = False


AUGMENTATIONS = {
    "default": Augmentation(),
    "randaugment": Augmentation("RandAugment", "image"),
    "autoaugment": Augmentation("AutoAugment", "image"),
    "augmix": Augmentation("AugMix", "image", num_views=3, changes_loss=True),
    "random_erasing": Augmentation("random erasing", "pixels", 0.5),
    "cutout": Augmentation("Cutout", "pixels"),
    "gridmask": Augmentation("GridMask", "batch", 0.8),
    "mixup": Augmentation("MixUp", "batch", pairs=True, changes_loss=True),
    "cutmix": Augmentation("CutMix", "batch", 0.5, pairs=True, changes_loss=True),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule and preprocessing of a classifier run; the papers' values by default."""

    # Settings of older versions, when decoded images went to the disk as well.
    RETIRED: ClassVar = {"image_cache": ("auto", "disk"), "image_cache_gb": None}

    arch: str = option(
        "resnet50",
        "backbone: any torchvision classifier, clip_vit_b32 or open_clip_vit_b32 (image towers of "
        "OpenAI's and LAION's CLIP), resnet18_cifar or resnet10_tiny (both for 32 pixels)",
        flags=("-a",),
    )
    pretrained: bool = option(False, "start from ImageNet's weights, CLIP from its own")
    weights: str | None = option(
        None,
        "which pretrained weights: a name that torchvision has for the backbone or a file of its "
        "state dict (timm's too); for CLIP also a hub id or local folder; default: IMAGENET1K_V1, "
        "or those that CLIP's name says",
    )
    zero_shot_head: bool = option(
        False,
        "start a CLIP's head from the text features of the classes' prompts: it decides as "
        "zero-shot CLIP before it learns; needs --pretrained, and weights that are a hub id or "
        "folder",
        added_later=True,
    )
    zero_init_residual: bool = option(
        False,
        "start every residual block of a ResNet as the identity (gamma 0 in its last batch "
        "normalisation), as timm does and so both papers' codes",
    )
    optimizer: str = option("sgd", "optimiser", choices=("sgd", "adamw"))
    lr: float = option(0.1, "peak learning rate")
    momentum: float = option(0.9, "SGD momentum")
    nesterov: bool = option(True, "Nesterov momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay: L2 under SGD, decoupled under AdamW")
    lr_warmup: float = option(
        0.0, "share of the optimiser steps, the first ones, over which the rate rises linearly"
    )
    label_smoothing: float = option(0.0, "share of a label that is spread over all classes")
    batch_size: int = option(64, "images per optimiser step, all processes together")
    budget: str = option(
        "epochs",
        "length of training: passes over the training set, or optimiser steps, equal for all arms",
        choices=("epochs", "steps"),
    )
    epochs: int = option(100, "passes over the training set; budget epochs")
    max_train_steps: int | None = option(None, "optimiser steps; budget steps")
    eval_steps: int | None = option(
        None, "optimiser steps between evaluations; default: an epoch, or a tenth of the steps"
    )
    image_size: int = option(224, "side of the classifier's input, pixels")
    resize_size: int = option(256, "side that images are resized to before the crop, pixels")
    crop: str = option(
        "random",
        "training crop: random = of the size of the input, from the resized image; "
        "random_resized = 8 to 100 percent of the image's own area, 3:4 to 4:3, resized to the "
        "input, for which images are decoded in every pass",
        choices=("random", "random_resized"),
        added_later=True,
    )
    rotation: float = option(15.0, "random rotation of at most this many degrees")
    horizontal_flip: bool = option(True, "mirror images at random; wrong for digits and text")
    augment: str = option(
        "default",
        "augmentation of labelled images beside rotation, crop and flip",
        choices=tuple(AUGMENTATIONS),
    )
    augment_probability: float | None = option(
        None,
        "share of images that random_erasing or gridmask (at the end of its ramp) act on, of "
        "batches for cutmix; default: the papers' 0.5, 0.8, 0.5",
    )
    randaugment_ops: int = option(2, "operations of RandAugment")
    randaugment_magnitude: int = option(9, "strength of RandAugment's operations, 0 to 30")
    mix_alpha: float = option(1.0, "MixUp and CutMix: the share is drawn from Beta(alpha, alpha)")
    jsd_weight: float = option(12.0, "AugMix: factor on the divergence of its three views")
    val_fraction: float = option(
        0.0, "share of the real training images held out to select the epoch that is reported"
    )
    mixed_precision: str = option("no", "autocast", choices=("no", "fp16", "bf16"))
    compile: bool = option(
        False,
        "compile the network with torch.compile: quicker steps after a start of a minute or more; "
        "needs a C++ compiler",
    )
    image_cache: str = option(
        "memory",
        "keep decoded images for the next passes and runs of the command: memory = in at most half "
        "of the memory that is free, none = decode them in every pass",
        choices=("memory", "none"),
        decides=False,
    )
    workers: int = option(
        4,
        "processes that load images, at most one per core; 0: none but the main one",
        flags=("-j",),
        decides=False,
    )

    def __post_init__(self):
        # The budget.
        require(
            self.budget == "epochs" or self.max_train_steps is not None,
            "--budget steps needs --max_train_steps",
        )
        require(
            self.budget == "steps" or self.max_train_steps is None,
            f"max_train_steps {self.max_train_steps} counts only with --budget steps",
        )
        # Numbers in their range.
        for name in (
            "batch_size",
            "epochs",
            "image_size",
            "max_train_steps",
            "eval_steps",
            "randaugment_ops",
            "mix_alpha",
            "lr",
        ):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} {value}: give a positive number")
        require(
            self.resize_size >= self.image_size,
            f"resize_size {self.resize_size} is smaller than image_size {self.image_size}",
        )
        require(0 <= self.val_fraction < 1, f"val_fraction {self.val_fraction}: give 0 to below 1")
        require(
            self.pretrained or self.weights is None,
            f"weights {self.weights} count only with --pretrained",
        )
        for name in ("weight_decay", "rotation", "workers"):
            value = getattr(self, name)
            require(value >= 0, f"{name} {value}: give 0 or a positive number")
        # Options that need another one.
        require(
            not self.zero_init_residual or self.arch.startswith(RESIDUAL),
            f"zero_init_residual: a {self.arch} has no residual blocks with a batch normalisation "
            "to start at zero; leave it out",
        )
        require(
            not (self.zero_init_residual and self.pretrained),
            "zero_init_residual changes the start from scratch; pretrained weights replace it, so "
            "leave it out",
        )
        self._check_optimizer()
        self._check_augmentation()

    def _check_optimizer(self) -> None:
        require(
            self.optimizer == "sgd" or self.lr <= LARGEST_ADAMW_LR,
            f"lr {self.lr:g} is far too much for AdamW; give about 1e-3, or --optimizer sgd",
        )
        require(
            self.momentum > 0 or not self.nesterov,
            f"momentum {self.momentum:g} leaves nothing to Nesterov; add --no-nesterov",
        )
        for name in ("lr_warmup", "label_smoothing", "momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} {value}: give 0 to below 1")

    def _check_augmentation(self) -> None:
        probability = self.augment_probability
        chosen = [name for name, arm in AUGMENTATIONS.items() if arm.probability is not None]
        require(
            probability is None or self.augment in chosen,
            f"augment_probability {probability} counts only with --augment {', '.join(chosen)}",
        )
        require(
            probability is None or 0 < probability <= 1,
            f"augment_probability {probability}: give more than 0, at most 1",
        )
        require(
            not self.augmentation.pairs or self.batch_size > 1,
            f"batch_size {self.batch_size}: {self.augment} mixes images of a batch; give 2 or more",
        )
        require(
            0 <= self.randaugment_magnitude <= 30,
            f"randaugment_magnitude {self.randaugment_magnitude}: give 0 to 30",
        )
        require(self.jsd_weight >= 0, f"jsd_weight {self.jsd_weight}: give 0 or more")

    @property
    def augmentation(self) -> Augmentation:
        """What `augment` names."""
        return AUGMENTATIONS[self.augment]

    @property
    def probability(self) -> float:
        """Share of images, or batches, that the augmentation acts on."""
        return self.augment_probability or self.augmentation.probability or 1.0

    @property
    def num_workers(self) -> int:
        """Loading processes on this machine."""
        return min(self.workers, os.cpu_count() or 1)


def split_budget(
    recipe: Recipe, *, share: float, epochs: int | None, rounds: int = 1
) -> tuple[Recipe, Recipe]:
    """Recipes of one round of an earlier stage, and of the last stage.

    Budget "steps": the steps are shared out, so that all stages take as many as any other arm.
    Budget "epochs": the last stage keeps its own.

    Args:
        recipe: Of the whole run.
        share: Of the steps, for the earlier stage.
        epochs: Of a round of the earlier stage; None: as many as the last stage has.
        rounds: Times that the earlier stage is done.

    Raises:
        InputError: There are fewer steps than stages.
    """
    if recipe.budget == "epochs":
        return replace(recipe, epochs=epochs or recipe.epochs), recipe
    steps = recipe.max_train_steps
    require(
        steps > rounds,
        f"max_train_steps {steps}: these labels take an earlier stage; give {rounds + 1} or more",
    )
    earlier = min(max(1, round(steps * share / rounds)), (steps - 1) // rounds)
    return (
        replace(recipe, max_train_steps=earlier),
        replace(recipe, max_train_steps=steps - rounds * earlier),
    )


class Schedule:
    """Sizes of all batches, when to evaluate, and the learning rate.

    Budget "epochs": passes over the training set, the last batch of each smaller, unless that
    leaves fewer than `min_batch` images (batch normalisation cannot train on one); the cosine moves
    once per epoch. Budget "steps": full batches over pass borders; the cosine moves every step.
    """

    def __init__(self, recipe: Recipe, num_images: int, min_batch: int = 2):
        self.recipe = recipe
        if recipe.budget == "epochs":
            full, rest = divmod(num_images, recipe.batch_size)
            epoch = [recipe.batch_size] * full + ([rest] if rest else [])
            if len(epoch) > 1 and rest and rest < min_batch:
                epoch[-2:] = [epoch[-2] + rest]
            self.batch_sizes = epoch * recipe.epochs
            self.steps_per_epoch: float = len(epoch)
            self.eval_steps = recipe.eval_steps or len(epoch)
        else:
            self.batch_sizes = [recipe.batch_size] * recipe.max_train_steps
            self.steps_per_epoch = num_images / recipe.batch_size
            self.eval_steps = recipe.eval_steps or math.ceil(recipe.max_train_steps / 10)
        self.warmup_steps = round(recipe.lr_warmup * len(self.batch_sizes))

    def progress(self, step: int) -> float:
        """Share of the run that is done before optimiser step `step`, from 0."""
        return step / len(self.batch_sizes)

    def learning_rate(self, step: int) -> float:
        """Rate of optimiser step `step`, from 0.

        lr (1 + cos(pi done)) / 2, times min(1, (step + 1) / warmup_steps).
        """
        done = step
        if self.recipe.budget == "epochs":
            done = step - step % int(self.steps_per_epoch)
        warmth = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return 0.5 * self.recipe.lr * warmth * (1 + math.cos(math.pi * self.progress(done)))

    def evaluates_after(self, step: int) -> bool:
        """Whether the test set is evaluated after `step` steps."""
        return step % self.eval_steps == 0 or step == len(self.batch_sizes)
