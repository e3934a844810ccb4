"""Classifier preprocessing: one normalisation, transforms of training, evaluation, prototypes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from expansion.augmentations import AUGMENTATIONS
from expansion.recipe import Recipe
from expansion.transforms import (
    eval_transform,
    normalize,
    prototype_transform,
    to_unit_tensor,
    train_transform,
)

SMALL = {"arch": "resnet10_tiny", "image_size": 24, "resize_size": 28}


@pytest.fixture
def image() -> Image.Image:
    gradient = Image.linear_gradient("L").resize((50, 40))
    return Image.merge("RGB", (gradient, gradient.rotate(90, expand=False), gradient.transpose(1)))


def test_normalize_subtracts_the_imagenet_mean_and_divides_by_the_deviation():
    images = torch.stack([torch.full((2, 2), value) for value in (0.714, 0.0, 1.0)])
    expected = (
        torch.tensor([1.0, -0.456 / 0.224, (1 - 0.406) / 0.225]).view(3, 1, 1).expand(3, 2, 2)
    )
    torch.testing.assert_close(normalize(images), expected)
    torch.testing.assert_close(normalize(images.expand(4, 3, 2, 2)), expected.expand(4, 3, 2, 2))


def test_a_unit_tensor_holds_channels_first_from_0_to_1():
    image = Image.new("RGB", (3, 2), (255, 51, 0))
    tensor = to_unit_tensor(image)
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.mean(dim=(1, 2)), torch.tensor([1.0, 0.2, 0.0]))


def test_the_eval_transform_is_a_resize_a_centre_crop_and_the_normalisation(image):
    recipe = Recipe(**SMALL)
    found = eval_transform(recipe)(image)
    resized = image.resize((28, 28), Image.Resampling.BICUBIC).crop((2, 2, 26, 26))
    torch.testing.assert_close(found, normalize(to_unit_tensor(resized)))
    assert torch.equal(found, eval_transform(recipe)(image))


def test_the_prototype_transform_squashes_the_whole_image(image):
    found = prototype_transform(32)(image)
    resized = image.resize((32, 32), Image.Resampling.BILINEAR)
    torch.testing.assert_close(found, normalize(to_unit_tensor(resized)))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_train_transform_repeats_under_one_seed_and_varies_over_seeds(image, augment):
    transform = train_transform(Recipe(**SMALL, augment=augment))

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image)

    views = (3,) if augment == "augmix" else ()
    assert draw(0).shape == (*views, 3, 24, 24) and draw(0).dtype == torch.float32
    assert torch.equal(draw(0), draw(0))
    assert len({draw(seed).sum().item() for seed in range(6)}) == 6


def test_without_flip_rotation_and_margin_the_train_transform_is_the_eval_transform(image):
    still = Recipe(
        arch="resnet10_tiny", image_size=24, resize_size=24, rotation=0.0, horizontal_flip=False
    )
    expected = eval_transform(still)(image)
    assert all(torch.equal(train_transform(still)(image), expected) for _ in range(8))
    flipping = Recipe(arch="resnet10_tiny", image_size=24, resize_size=24, rotation=0.0)
    torch.manual_seed(0)
    views = [train_transform(flipping)(image) for _ in range(16)]
    assert {torch.equal(v, expected) for v in views} == {True, False}
    assert all(torch.equal(v, expected) or torch.equal(v.flip(-1), expected) for v in views)
