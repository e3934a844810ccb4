"""How a classifier is trained: the recipe's schema and its schedule. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expansion.config import option, require

AUGMENTATIONS = ("default", "randaugment")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule and preprocessing of a classifier run; the papers' values by default."""

    arch: str = option(
        "resnet50",
        "backbone: any torchvision classifier, resnet18_cifar or resnet10_tiny (both for 32 "
        "pixels)",
        flags=("-a",),
    )
    pretrained: bool = option(False, "start from ImageNet weights")
    lr: float = option(0.1, "peak learning rate of SGD")
    momentum: float = option(0.9, "SGD momentum")
    nesterov: bool = option(True, "Nesterov momentum")
    weight_decay: float = option(1e-4, "L2 weight decay")
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
    rotation: float = option(15.0, "random rotation of at most this many degrees")
    horizontal_flip: bool = option(True, "mirror images at random; wrong for digits and text")
    augment: str = option(
        "default", "augmentation beside rotation, crop and flip", choices=AUGMENTATIONS
    )
    val_fraction: float = option(
        0.0, "share of the real training images held out to select the epoch that is reported"
    )
    mixed_precision: str = option("no", "autocast", choices=("no", "fp16", "bf16"))
    workers: int = option(4, "processes that load images; 0: none but the main one", flags=("-j",))

    def __post_init__(self):
        require(
            self.budget == "epochs" or self.max_train_steps is not None,
            "--budget steps needs --max_train_steps",
        )
        require(
            self.budget == "steps" or self.max_train_steps is None,
            f"max_train_steps {self.max_train_steps} counts only with --budget steps",
        )
        for name in ("batch_size", "epochs", "image_size", "max_train_steps", "eval_steps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} {value}: give a positive number")
        require(
            self.resize_size >= self.image_size,
            f"resize_size {self.resize_size} is smaller than image_size {self.image_size}",
        )
        require(0 <= self.val_fraction < 1, f"val_fraction {self.val_fraction}: give 0 to below 1")


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

    def learning_rate(self, step: int) -> float:
        """Rate of optimiser step `step`, from 0."""
        done = step
        if self.recipe.budget == "epochs":
            done = step - step % int(self.steps_per_epoch)
        return 0.5 * self.recipe.lr * (1 + math.cos(math.pi * done / len(self.batch_sizes)))

    def evaluates_after(self, step: int) -> bool:
        """Whether the test set is evaluated after `step` steps."""
        return step % self.eval_steps == 0 or step == len(self.batch_sizes)
