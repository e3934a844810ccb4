"""Backbones as features and head: shapes, a step of training, saved and loaded, pretrained."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F

import train_original
from distdiff.config import DistDiffConfig
from distdiff.energy import ImageEnergy
from distdiff.prototypes import build_prototypes, extract_features
from expansion.classifier.backbones import (
    ALIASES,
    OWN_BACKBONES,
    Classifier,
    check_arch,
    check_backbone,
    classifier_state,
    load_classifier,
)
from expansion.classifier.clip_backbone import TOWERS, Tower
from expansion.common.errors import InputError
from expansion.images.records import ImageRecord

MODERN = ("convnext_tiny", "densenet121", "efficientnet_b0", "swin_v2_t")
ARCHS = sorted({*OWN_BACKBONES, *ALIASES, *MODERN, "resnet18", "vit_b_32", "clip_tiny"})
TINY_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
TINY_CLIP |= {"num_attention_heads": 2, "projection_dim": 8, "image_size": 16, "patch_size": 8}


@pytest.fixture(autouse=True)
def clip_tiny(monkeypatch) -> None:
    """A CLIP of 16 pixels among the backbones, shaped as that of `clip_dir`."""
    monkeypatch.setitem(TOWERS, "clip_tiny", Tower("nobody/no-such-clip", TINY_CLIP))


@functools.cache
def classifier_of(arch: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(arch, 5, 32).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
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


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("arch", [*OWN_BACKBONES, *MODERN, "mobilenetv2", "clip_tiny"])
def test_a_saved_classifier_loads_strictly_frozen_and_in_eval_mode(arch, pixels, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    torch.save(classifier_state(classifier_of(arch)), path)
    loaded = load_classifier(path, arch=arch, num_classes=5)
    path.unlink()  # up to 110 MB
    assert torch.equal(loaded(pixels), classifier_of(arch)(pixels))
    assert (loaded.arch, loaded.num_classes, loaded.image_size) == (arch, 5, 32)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*OWN_BACKBONES, *MODERN, "mobilenetv2", "resnet18", "clip_tiny"])
def test_a_step_of_training_changes_every_part(arch):
    torch.manual_seed(0)
    classifier = Classifier(arch, 5, 32).train()
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    F.cross_entropy(classifier(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()
    same = [n for n, p in classifier.named_parameters() if torch.equal(p, before[n])]
    assert all(p.isfinite().all() for p in classifier.parameters())
    assert len(same) <= 0.4 * len(before)  # dropped paths and keys without effect
    assert not any(name.startswith("head") for name in same)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*MODERN, "resnet18", "mobilenetv2", "vit_b_32", "clip_tiny"])
def test_a_backbone_guides_by_prototypes_and_a_finite_gradient(arch, tmp_path):
    guide = classifier_of(arch).requires_grad_(False)
    for number in range(4):
        colours = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(number))
        torchvision.utils.save_image(colours, tmp_path / f"{number}.png")
    images = [ImageRecord(tmp_path / f"{i}.png", f"{i}.png", i // 2, "c") for i in range(4)]
    features = extract_features(guide, images)
    assert features.shape == (4, guide.head.in_features)
    prototypes = build_prototypes(features, torch.tensor([0, 0, 1, 1]), 2, 2)
    config = DistDiffConfig(encoder_weight_path="guide")
    decoded = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(9)) - 0.5
    decoded.requires_grad_()
    energy = ImageEnergy(guide, prototypes, config)(decoded, torch.tensor([0, 1]))
    energy.sum().backward()
    assert energy.shape == (2,) and energy.isfinite().all() and (energy > 0).all()
    assert decoded.grad.isfinite().all() and decoded.grad.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("arch", "width"),
    [("resnet18", 512), ("densenet121", 1024), ("efficientnet_b0", 1280), ("clip_tiny", 8)],
)
def test_images_of_224_pixels_give_features_of_the_same_width(arch, width):
    classifier = Classifier(arch, 5, 224).train()
    check_backbone(classifier)
    assert classifier.training
    with torch.no_grad():
        features = classifier.eval().features(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, width) == (1, classifier.head.in_features)


@pytest.mark.parametrize(
    ("arch", "size"), [("alexnet", 32), ("maxvit_t", 32), ("vit_b_16", 24), ("clip_tiny", 4)]
)
def test_a_size_that_a_backbone_cannot_take_is_found_before_anything_is_written(
    arch, size, digits_dir, tmp_path
):
    line = f"-d digits --data_dir {digits_dir} --checkpoint_dir {tmp_path} -a {arch}"
    with pytest.raises(InputError, match=f"{arch} cannot take images of {size} pixels") as error:
        train_original.main([*line.split(), "--image_size", str(size), "--seeds", "1"])
    assert "\n" not in str(error.value) and "--image_size" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ["googlenet", "squeezenet1_0", "mobilenet_v3_small"])
def test_a_torchvision_network_trains_as_a_classifier_or_is_refused_by_name(arch):
    try:
        classifier = Classifier(arch, 5, 64).train()
    except InputError as error:
        assert arch in str(error)
        return
    assert classifier(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.slow
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
    for arch in (*ALIASES, *OWN_BACKBONES, "vit_b_16", "clip_vit_b32"):
        check_arch(arch)


def test_a_backbone_without_pretrained_weights_says_so():
    with pytest.raises(InputError, match="resnet10_tiny; use --no-pretrained"):
        Classifier("resnet10_tiny", 5, 32, pretrained=True)
