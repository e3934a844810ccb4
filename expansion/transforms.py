"""Classifier preprocessing: one normalisation for training, evaluation, prototypes and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from expansion.augmentations import AUGMENTATIONS
from expansion.recipe import Recipe
from expansion.strong_augmentation import StrongAugment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BICUBIC = InterpolationMode.BICUBIC


def normalize(images: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [0, 1] to the classifiers' input: ImageNet mean 0, deviation 1."""
    return F.normalize(images, IMAGENET_MEAN, IMAGENET_STD)


def to_unit_tensor(image: Image.Image) -> Tensor:
    """PIL image to (3, H, W) float32 in [0, 1]."""
    return F.to_dtype(F.to_image(image), torch.float32, scale=True)


def plain_transform(
    recipe: Recipe, further: Sequence[nn.Module] = ()
) -> Callable[[Image.Image], Tensor]:
    """Resize, rotation, random crop, flip, normalisation (DistDiff's recipe): (3, H, W).

    Args:
        further: Steps on the PIL image before it becomes a tensor.
    """
    return v2.Compose([*_crop_steps(recipe), *further, to_unit_tensor, normalize])


def train_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """`plain_transform` with the image's part of `recipe.augment`.

    (3, H, W); where the augmentation wants several views, (V, 3, H, W) of one crop, the first plain.
    """
    arm = AUGMENTATIONS[recipe.augment]
    finish = [
        v2.Compose([*steps, to_unit_tensor, normalize, *arm.pixel_steps(recipe)])
        for steps in ([], arm.image_steps(recipe))
    ]
    if arm.num_views == 1:
        return v2.Compose([*_crop_steps(recipe), finish[1]])
    return v2.Compose([*_crop_steps(recipe), Views(*finish, num_views=arm.num_views)])


class Views:
    """A PIL image as (V, 3, H, W): once by `plain`, then V - 1 times by `augment`."""

    def __init__(self, plain: Callable, augment: Callable, num_views: int):
        self.transforms = [plain] + [augment] * (num_views - 1)

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([transform(image) for transform in self.transforms])


def strong_transform(recipe: Recipe, num_ops: int) -> Callable[[Image.Image], Tensor]:
    """`plain_transform` with FixMatch's strong augmentation in it."""
    return plain_transform(recipe, [StrongAugment(num_ops)])


def _crop_steps(recipe: Recipe) -> list[nn.Module]:
    size = recipe.resize_size
    steps: list[nn.Module] = [v2.Resize((size, size), interpolation=BICUBIC)]
    if recipe.rotation:
        steps.append(v2.RandomRotation(recipe.rotation))
    steps.append(v2.RandomCrop(recipe.image_size))
    if recipe.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return steps


def eval_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Resize, centre crop, normalisation."""
    size = recipe.resize_size
    resize = v2.Resize((size, size), interpolation=BICUBIC)
    return v2.Compose([resize, v2.CenterCrop(recipe.image_size), to_unit_tensor, normalize])


def prototype_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Squash to the guide's input size (bilinear) and normalise, as DistDiff's code does."""
    resize = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BILINEAR)
    return v2.Compose([resize, to_unit_tensor, normalize])
