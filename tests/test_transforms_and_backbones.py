"""Classifier preprocessing, and backbones as features and head, saved and loaded."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from expansion.backbones import (
    ALIASES,
    OWN_BACKBONES,
    Classifier,
    check_arch,
    classifier_state,
    load_classifier,
)
from expansion.errors import InputError
from expansion.recipe import Recipe
from expansion.transforms import (
    AUGMENT_STEPS,
    eval_transform,
    normalize,
    prototype_transform,
    to_unit_tensor,
    train_transform,
)

ARCHS = sorted({*OWN_BACKBONES, *ALIASES, "resnet18", "swin_v2_t"})
SMALL = {"arch": "resnet10_tiny", "image_size": 24, "resize_size": 28}


@functools.cache
def classifier_of(arch: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(arch, 5, 32).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("augment", AUGMENT_STEPS)
def test_the_train_transform_repeats_under_one_seed_and_varies_over_seeds(image, augment):
    transform = train_transform(Recipe(**SMALL, augment=augment))

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image)

    assert draw(0).shape == (3, 24, 24) and draw(0).dtype == torch.float32
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


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_the_logits_are_the_head_applied_to_the_features(arch, pixels):
    classifier = classifier_of(arch)
    features = classifier.features(pixels)
    assert features.shape == (3, classifier.head.in_features) and features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 0
    logits = features @ classifier.head.weight.T + classifier.head.bias
    assert logits.shape == (3, 5)
    torch.testing.assert_close(classifier(pixels), logits)


@torch.no_grad()
@pytest.mark.parametrize("arch", [*OWN_BACKBONES, "mobilenetv2", "swin_v2_t"])
def test_a_saved_classifier_loads_strictly_frozen_and_in_eval_mode(arch, pixels, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    torch.save(classifier_state(classifier_of(arch)), path)
    loaded = load_classifier(path, arch=arch, num_classes=5)
    path.unlink()  # up to 110 MB
    assert torch.equal(loaded(pixels), classifier_of(arch)(pixels))
    assert (loaded.arch, loaded.num_classes, loaded.image_size) == (arch, 5, 32)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("arch", ["googlenet", "squeezenet1_0", "mobilenet_v3_small"])
def test_a_torchvision_network_trains_as_a_classifier_or_is_refused_by_name(arch):
    try:
        classifier = Classifier(arch, 5, 64).train()
    except InputError as error:
        assert arch in str(error)
        return
    assert classifier(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "prefix"),
    [
        ("resnet18", ""),
        ("resnet18", "module."),
        ("mobilenet_v2", "module."),
        ("swin_v2_t", "module."),
    ],
)
def test_a_plain_torchvision_checkpoint_gives_the_logits_of_torchvision(
    arch, prefix, pixels, tmp_path
):
    torch.manual_seed(1)
    network = torchvision.models.get_model(arch, weights=None, num_classes=4).eval()
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth.tar")
    loaded = load_classifier(tmp_path / "model.pth.tar", arch=arch, num_classes=4)
    torch.testing.assert_close(loaded(pixels), network(pixels))


def tiny_state(**changes) -> dict:
    return {**classifier_state(Classifier("resnet10_tiny", 5, 32)), **changes}


def without(key: str) -> dict:
    state = tiny_state()
    return {**state, "state_dict": {k: v for k, v in state["state_dict"].items() if k != key}}


@pytest.mark.parametrize(
    ("make_content", "wishes", "named"),
    [
        (tiny_state, {"num_classes": 7}, "5 classes but the dataset has 7"),
        (tiny_state, {"arch": "resnet18"}, "holds a resnet10_tiny, not a resnet18"),
        (lambda: tiny_state(arch="resnet18_cifar"), {}, "does not fit a resnet18_cifar"),
        (lambda: tiny_state(arch="resnet999"), {}, "unknown arch 'resnet999'"),
        (lambda: tiny_state(arch=None), {}, "--arch"),
        (lambda: without("body.0.weight"), {}, "body.0.weight"),
        (lambda: without("head.bias"), {}, "head.bias|9.bias"),
        (lambda: {"arch": "resnet10_tiny"}, {}, "state_dict"),
        (lambda: torch.zeros(3), {}, "state_dict"),
        (lambda: tiny_state(state_dict=[torch.zeros(2)]), {}, "model.pth"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(make_content, wishes, named, tmp_path):
    torch.save(make_content(), tmp_path / "model.pth")
    with pytest.raises(InputError, match=named):
        load_classifier(tmp_path / "model.pth", **wishes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"404: Not Found",
        b"accuracy: 91.2\n",
        b"checkpoint of epoch 90\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"PK\x03\x04 cut off",
        b"\x89PNG\r\n\x1a\n",
        b"I\x00\x00",
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(content, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="model.pth"):
        load_classifier(path, arch="resnet10_tiny")


def test_a_cut_off_or_missing_checkpoint_is_named(tmp_path, guide_path):
    (tmp_path / "cut.pth").write_bytes(guide_path.read_bytes()[:100_000])
    for name in ("cut.pth", "absent.pth"):
        with pytest.raises(InputError, match=name):
            load_classifier(tmp_path / name)


class Intruder:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_checkpoint_that_would_run_code_is_refused_without_running_it(zipped, tmp_path):
    path, mark = tmp_path / "model.pth", tmp_path / "was_here"
    content = tiny_state(extra=Intruder(mark))
    if zipped is None:
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())
        assert mark.exists()  # a plain unpickler would have run it
        mark.unlink()
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="model.pth"):
        load_classifier(path)
    assert not mark.exists()


def test_an_unknown_arch_comes_with_a_close_name_and_every_alias_is_known():
    with pytest.raises(InputError, match="unknown arch 'resnet5'; did you mean 'resnet50'"):
        check_arch("resnet5")
    for arch in (*ALIASES, *OWN_BACKBONES, "vit_b_16"):
        check_arch(arch)


def test_a_backbone_without_pretrained_weights_says_so():
    with pytest.raises(InputError, match="resnet10_tiny; use --no-pretrained"):
        Classifier("resnet10_tiny", 5, 32, pretrained=True)
