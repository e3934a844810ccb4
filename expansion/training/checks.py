"""What a training would refuse, found before weights load; a dry run checks the same.

Networks are built on torch's meta device, which knows shapes and has no numbers.
"""

from __future__ import annotations

import os
import shutil

import torch

from expansion.classifier.backbones import Classifier, check_arch, check_backbone, check_pretrained
from expansion.classifier.recipe import Recipe, Schedule
from expansion.classifier.text_head import check_zero_shot_head
from expansion.common.errors import require


def check_training(recipe: Recipe, num_classes: int, num_images: int, num_processes: int) -> None:
    """Raise InputError where the network, its weights or the batches cannot work.

    Args:
        num_images: In one pass.
    """
    check_arch(recipe.arch)
    classifier = _without_numbers(recipe.arch, num_classes, recipe.image_size)
    check_backbone(classifier)
    if recipe.zero_shot_head:
        check_zero_shot_head(recipe)
    if recipe.pretrained:
        check_pretrained(recipe.arch, recipe.image_size, recipe.weights)
    if recipe.compile:
        check_compiler()
    _check_batches(recipe, num_images, num_processes)
    smallest = min(Schedule(recipe, num_images, 2 * num_processes).batch_sizes) // num_processes
    require(
        smallest > 1 or not _needs_two(classifier),
        f"batch_size {recipe.batch_size}: batch normalisation of {recipe.arch} cannot train on one "
        f"image, and {num_images} images in {num_processes} processes come to that; give "
        f"--batch_size {2 * num_processes} or more",
    )


def _check_batches(recipe: Recipe, num_images: int, num_processes: int) -> None:
    size = recipe.batch_size
    require(
        not recipe.augmentation.pairs or size >= 2 * num_processes,
        f"batch_size {size}: {recipe.augment} mixes images of one process; give at least "
        f"{2 * num_processes} for {num_processes} processes",
    )
    smallest = min(Schedule(recipe, num_images, 2 * num_processes).batch_sizes)
    require(
        smallest >= num_processes,
        f"batches of {smallest} images (batch_size {size}, {num_images} training images) leave "
        f"some of the {num_processes} processes without any; start fewer",
    )


def _without_numbers(arch: str, num_classes: int, image_size: int) -> Classifier:
    try:
        with torch.device("meta"):
            return Classifier(arch, num_classes, image_size)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return Classifier(arch, num_classes, image_size).to("meta")


def check_compiler() -> None:
    """Raise InputError where torch.compile would find no compiler at its first step."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    require(
        any(name and shutil.which(name) for name in names),
        "--compile needs a C++ compiler; install g++, or leave the option out",
    )


def _needs_two(classifier: Classifier) -> bool:
    """Whether a step of training on one image fails, as batch normalisation of single values."""
    size = classifier.image_size
    with torch.no_grad():
        try:
            classifier.train()(torch.zeros(1, 3, size, size, device="meta"))
        except ValueError:
            return True
    return False
