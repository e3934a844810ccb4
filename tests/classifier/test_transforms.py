"""Classifier preprocessing: one normalisation, transforms of training, evaluation, prototypes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torchvision.transforms import v2

from expansion.classifier.recipe import AUGMENTATIONS, Recipe
from expansion.classifier.transforms import (
    RandomView,
    eval_transform,
    image_cache,
    network_input,
    normalize,
    plain_transform,
    prototype_transform,
    train_transform,
    training_cache,
    turned_crop,
)
from expansion.data.batches import StreamBatches
from expansion.images.records import ImageRecord
from expansion.images.tensors import to_pixels, to_unit_tensor
from expansion.training.objectives import Supervised

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
    assert found.dtype == torch.uint8 and torch.equal(found, to_pixels(resized))
    torch.testing.assert_close(network_input(found), normalize(to_unit_tensor(resized)))
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
    inputs = network_input(draw(0))
    assert inputs.shape == (*views, 3, 24, 24) and inputs.dtype == torch.float32
    assert torch.equal(draw(0), draw(0))
    assert len({network_input(draw(seed)).sum().item() for seed in range(6)}) == 6


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
    assert all(torch.equal(v, expected) or torch.equal(v.flip(1), expected) for v in views)


def torchvision_view(recipe: Recipe, image: Image.Image) -> Image.Image:
    """The plain recipe's steps as torchvision has them, one after the other."""
    steps = [v2.Resize((recipe.resize_size,) * 2, v2.InterpolationMode.BICUBIC)]
    if recipe.rotation:
        steps.append(v2.RandomRotation(recipe.rotation))
    steps.append(v2.RandomCrop(recipe.image_size))
    if recipe.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)(image)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(256, 224), (36, 32), (33, 33), (7, 3), (101, 50)])
@pytest.mark.parametrize("rotation", [0.0, 1e-6, 15.0, 45.0, 180.0])
@pytest.mark.parametrize("horizontal_flip", [True, False])
def test_the_one_step_view_draws_and_shows_what_torchvision_does(sizes, rotation, horizontal_flip):
    recipe = Recipe(
        resize_size=sizes[0],
        image_size=sizes[1],
        rotation=rotation,
        horizontal_flip=horizontal_flip,
    )
    pixels = np.random.default_rng(0).integers(1, 256, (70, 90, 3), dtype=np.uint8)
    image, view = Image.fromarray(pixels), RandomView(recipe)
    for seed in range(40):
        torch.manual_seed(seed)
        expected, state = torchvision_view(recipe, image), torch.get_rng_state()
        torch.manual_seed(seed)
        assert np.array_equal(np.asarray(view(image)), np.asarray(expected))
        assert torch.equal(torch.get_rng_state(), state)  # and later draws are the same ones


@pytest.mark.parametrize(
    "angle", [0, 90, 180, 270, -90, 1e-17, 1e-12, 89.999999, 90.0000001, 359.99]
)
@pytest.mark.parametrize("side", [8, 33])
def test_a_turned_crop_is_pillows_rotation_at_special_angles_too(angle, side):
    pixels = np.random.default_rng(1).integers(1, 256, (side, side, 3), dtype=np.uint8)
    image, size = Image.fromarray(pixels), side - 4
    expected = np.asarray(image.rotate(angle).crop((1, 3, 1 + size, 3 + size)))
    for flip, same in ((False, expected), (True, expected[:, ::-1])):
        assert np.array_equal(np.asarray(turned_crop(image, angle, (1, 3), size, flip)), same)


@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (9, 4, 3), (2, 3, 8, 8, 3)])
def test_the_networks_input_is_the_normalised_unit_tensor_to_the_last_bit(shape):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = [
        normalize(to_unit_tensor(Image.fromarray(p.numpy()))) for p in pixels.view(-1, *shape[-3:])
    ]
    found = network_input(pixels)
    assert torch.equal(found.reshape(-1, *found.shape[-3:]), torch.stack(images))
    assert found.stride(-3) == 1  # channels last in memory
    assert network_input(found) is found
    turned = pixels.transpose(-3, -2)  # laid out otherwise
    assert torch.equal(network_input(turned), found.transpose(-2, -1))


def test_normalisation_lets_gradients_through_after_an_evaluation():
    with torch.inference_mode():
        network_input(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
        normalize(torch.zeros(1, 3, 2, 2))
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normalize(images).sum().backward()
    assert images.grad[0, 0, 0, 0].item() == pytest.approx(1 / 0.229)


@pytest.mark.parametrize("rotation", [0.0, 15.0])
def test_resized_crops_are_torchvision_s_of_the_whole_image(tmp_path, rotation):
    """Of the image as it is: a squashed one would have other areas and shapes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "0.png")
    record = ImageRecord(tmp_path / "0.png", "0.png", 0, "a")
    recipe = Recipe(
        image_size=32, resize_size=36, rotation=rotation, crop="random_resized", workers=0
    )
    steps = [v2.RandomRotation(rotation)] if rotation else []
    crop = v2.RandomResizedCrop(
        32, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=v2.InterpolationMode.BICUBIC
    )
    whole = v2.Compose([*steps, crop, v2.RandomHorizontalFlip()])
    objective = Supervised([record], recipe, 1, 2)
    samples = StreamBatches(1, [1] * 20, seed=1)
    for (found, _), ((_, seed),) in zip(
        objective.batches([1] * 20, 0, Accelerator()), samples, strict=True
    ):
        torch.manual_seed(seed)
        assert torch.equal(found, network_input(to_pixels(whole(image))[None]))


def test_views_without_labels_are_resized_crops_too_and_test_images_are_not():
    recipe = Recipe(image_size=32, resize_size=36, rotation=0.0, crop="random_resized")
    image = Image.new("RGB", (90, 40), "white")
    image.paste("black", (0, 0, 45, 40))
    shares = [plain_transform(recipe)(image).eq(255).float().mean().item() for _ in range(200)]
    assert min(shares) == 0 and max(shares) == 1  # also crops of one half alone
    assert 0.45 < eval_transform(recipe)(image).float().mean() / 255 < 0.55
    assert training_cache(recipe) is None and image_cache(recipe) is not None
