"""Classifier preprocessing: one normalisation for training, evaluation, prototypes and guidance.

What loaders run on an image gives 8-bit pixels (H, W, 3); `network_input` normalises a batch of
them on the device. A quarter of the bytes passes between processes and to a GPU that way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from expansion.classifier.augmentations import steps_on
from expansion.classifier.recipe import Recipe
from expansion.classifier.strong_augmentation import StrongAugment
from expansion.images.pixel_cache import PixelCache
from expansion.images.tensors import BICUBIC, to_pixels, to_unit_tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FIXED_ONE = 1 << 16  # Pillow counts columns and rows in 65536ths


def normalize(images: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [0, 1] to the classifiers' input: ImageNet mean 0, deviation 1."""
    mean, std = _statistics(images.device, images.dtype)
    return images.sub(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


@functools.cache
def _statistics(device: torch.device, dtype: torch.dtype, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and deviation (3 repeat,), made once: a copy to the GPU would halt every step."""
    with torch.inference_mode(False):
        return tuple(
            torch.tensor(values * repeat, dtype=dtype, device=device)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )


def network_input(pixels: Tensor) -> Tensor:
    """8-bit images (..., H, W, 3) to normalised (..., 3, H, W), channels last in memory.

    The numbers are `normalize`'s to the last bit. Images that an augmentation has normalised
    already, which are floats, are returned as they are.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    images = F.to_dtype(pixels.contiguous(), torch.float32, scale=True)
    # By whole rows: three channels at a time would be too short a run for vector instructions.
    mean, std = _statistics(images.device, images.dtype, pixels.shape[-2])
    images.flatten(-2).sub_(mean).div_(std)
    return images.movedim(-1, -3)


def plain_transform(
    recipe: Recipe, further: Sequence[nn.Module] = ()
) -> Callable[[Image.Image], Tensor]:
    """The recipe's random view of an image: (H, W, 3), uint8.

    Args:
        further: Steps on the PIL image before it becomes a tensor.
    """
    return v2.Compose([*random_view(recipe), *further, to_pixels])


def train_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """`plain_transform` with the image's part of `recipe.augment`.

    (H, W, 3), uint8, or normalised (3, H, W) where the augmentation acts on normalised pixels; of
    one that wants several views, (V, ...) of one crop, the first plain.
    """
    image_steps, pixel_steps = steps_on("image", recipe), steps_on("pixels", recipe)
    last = [to_unit_tensor, normalize, *pixel_steps] if pixel_steps else [to_pixels]
    plain, augment = (v2.Compose([*steps, *last]) for steps in ([], image_steps))
    num_views = recipe.augmentation.num_views
    views = augment if num_views == 1 else Views(plain, augment, num_views)
    return v2.Compose([*random_view(recipe), views])


class Views:
    """A PIL image as (V, H, W, 3): once by `plain`, then V - 1 times by `augment`."""

    def __init__(self, plain: Callable, augment: Callable, num_views: int):
        self.transforms = [plain] + [augment] * (num_views - 1)

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([transform(image) for transform in self.transforms])


def strong_transform(recipe: Recipe, num_ops: int) -> Callable[[Image.Image], Tensor]:
    """`plain_transform` with FixMatch's strong augmentation in it."""
    return plain_transform(recipe, [StrongAugment(num_ops)])


def random_view(recipe: Recipe) -> list[Callable[[Image.Image], Image.Image]]:
    """Resize, rotation, random crop, flip (DistDiff's recipe); or rotation, resized crop, flip."""
    if recipe.crop == "random":
        return [RandomView(recipe)]
    steps: list[nn.Module] = [v2.RandomRotation(recipe.rotation)] if recipe.rotation else []
    # Area and shape are torchvision's defaults, and those of the paper that began it (1409.4842).
    steps.append(v2.RandomResizedCrop(recipe.image_size, interpolation=BICUBIC))
    if recipe.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return steps


class RandomView:
    """Resize, then rotation, random crop and flip in one step.

    Draws the numbers, and gives the pixels, of torchvision's v2.RandomRotation, RandomCrop and
    RandomHorizontalFlip on a PIL image, one after the other.
    """

    def __init__(self, recipe: Recipe):
        self.resize, self.size = squash(recipe.resize_size), recipe.image_size
        self.margin = recipe.resize_size - recipe.image_size
        self.rotation, self.horizontal_flip = recipe.rotation, recipe.horizontal_flip

    def __call__(self, image: Image.Image) -> Image.Image:
        angle, flip = 0.0, False
        if self.rotation:
            angle = torch.empty(1).uniform_(-self.rotation, self.rotation).item()
        top, left = (
            int(torch.randint(self.margin + 1, ())) if self.margin else 0 for _ in range(2)
        )
        if self.horizontal_flip:
            flip = bool(torch.rand(1) < 0.5)
        return turned_crop(self.resize(image), angle, (left, top), self.size, flip)


def turned_crop(
    image: Image.Image, angle: float, corner: tuple[int, int], size: int, flip: bool
) -> Image.Image:
    """`size` x `size` pixels from `corner` (left, top) of the turned square image, then mirrored.

    To the last bit what image.rotate(angle) (nearest neighbour, black outside), crop and a mirror
    image give. Pillow reads output pixel (x, y) from input column (c + a x + b y) >> 16, and so for
    the rows, in whole numbers; crop and mirror are other whole numbers, not another pass.

    Args:
        angle: Degrees, counter-clockwise.
    """
    turn, half = -math.radians(angle % 360.0), image.width / 2
    cos, sin = round(math.cos(turn), 15), round(math.sin(turn), 15)
    coefficients: list[float] = []
    for a, b in ((cos, sin), (-sin, cos)):
        offset = a * -half + b * -half + half  # turns about the centre
        along_x, along_y = _fixed(a), _fixed(b)
        start = _fixed(offset + a * 0.5 + b * 0.5) + corner[0] * along_x + corner[1] * along_y
        if flip:
            start, along_x = start + (size - 1) * along_x, -along_x
        a, b = along_x / FIXED_ONE, along_y / FIXED_ONE
        coefficients += [a, b, start / FIXED_ONE - a * 0.5 - b * 0.5]
    return image.transform((size, size), Image.Transform.AFFINE, coefficients)


def _fixed(value: float) -> int:
    return math.floor(value * FIXED_ONE + 0.5)


def squash(side: int) -> v2.Resize:
    """To `side` x `side` pixels whatever the shape; an image of that size is not touched."""
    return v2.Resize((side, side), interpolation=BICUBIC)


@functools.cache
def _pixel_cache(side: int) -> PixelCache:
    return PixelCache(side, squash(side))


def image_cache(recipe: Recipe) -> PixelCache | None:
    """The cache of squashed images that all streams and runs of this process share, if any."""
    return _pixel_cache(recipe.resize_size) if recipe.image_cache == "memory" else None


def training_cache(recipe: Recipe) -> PixelCache | None:
    """`image_cache`, unless training looks at images before they are squashed."""
    return image_cache(recipe) if recipe.crop == "random" else None


def eval_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Resize, centre crop: (H, W, 3), uint8."""
    return v2.Compose([squash(recipe.resize_size), v2.CenterCrop(recipe.image_size), to_pixels])


def prototype_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Squash to the guide's input size (bilinear) and normalise, as DistDiff's code does."""
    resize = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BILINEAR)
    return v2.Compose([resize, to_unit_tensor, normalize])
