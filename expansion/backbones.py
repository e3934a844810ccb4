"""Classifiers: a torchvision backbone or CLIP's by name, as pooled features and a linear head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet, resnet18
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from expansion.clip_backbone import TOWERS, build_tower, load_tower
from expansion.config import unknown_name
from expansion.errors import InputError, brief
from expansion.hub import timeout_of_sockets

# The papers' names, where torchvision spells them otherwise.
ALIASES = {
    "resnext50": "resnext50_32x4d",
    "wideresnet50": "wide_resnet50_2",
    "mobilenetv2": "mobilenet_v2",
}


DEFAULT_WEIGHTS = "IMAGENET1K_V1"
LARGEST_SIDE = 16_384  # pixels of a classifier's input
LARGEST_CLASSES = 1_000_000

# No last linear layer, or auxiliary outputs in training.
UNSUITED = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")


class TinyResNet(nn.Sequential):
    """ResNet-10 at a quarter of the usual width, for images of about 32 pixels on a CPU.

    3x3 stem of stride 2, then one basic block each of 16, 32, 64 and 128 channels (0.3 M
    parameters).
    """

    def __init__(self):
        layers = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        layers.append(BasicBlock(16, 16))
        for inplanes, planes in ((16, 32), (32, 64), (64, 128)):
            shortcut = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, 2, bias=False), nn.BatchNorm2d(planes)
            )
            layers.append(BasicBlock(inplanes, planes, 2, shortcut))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 1000))


def _resnet18_cifar() -> ResNet:
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pooling, as is usual at 32 pixels."""
    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


OWN_BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet10_tiny": TinyResNet,
    "resnet18_cifar": _resnet18_cifar,
}


class Classifier(nn.Module):
    """`features` (B, D) of normalised images (B, 3, H, W), and `forward`: logits (B, N).

    Args:
        arch: Name of the backbone.
        num_classes: N.
        image_size: Side of the input that it is trained on, pixels.
        pretrained: Start from pretrained weights.
        weights: Which; a name of torchvision's or a file, for CLIP a hub id or a folder.

    Raises:
        InputError: Unknown `arch`, an `image_size` that it cannot take, or no pretrained weights to
            be had.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        image_size: int,
        pretrained: bool = False,
        weights: str | None = None,
    ):
        super().__init__()
        self.arch, self.num_classes, self.image_size = arch, num_classes, image_size
        check_arch(arch)
        if arch in TOWERS:
            self.body = load_tower(arch, weights) if pretrained else build_tower(arch)
            num_features = self.body.num_features
        else:
            network = _network(arch, image_size)
            if pretrained:
                _load_pretrained(network, arch, weights or DEFAULT_WEIGHTS, image_size)
            self.body, num_features = _headless(network)
        self.head = nn.Linear(num_features, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        return self.body(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def torchvision_name(arch: str) -> str:
    """The papers' name of a backbone as torchvision spells it."""
    return ALIASES.get(arch, arch)


def check_arch(arch: str) -> None:
    """Raise InputError, naming close matches, unless `arch` is a known backbone."""
    known = torchvision.models.list_models(torchvision.models)
    own = (*OWN_BACKBONES, *TOWERS)
    if torchvision_name(arch) not in (*known, *own):
        raise unknown_name("arch", arch, [*ALIASES, *own, *known])
    if torchvision_name(arch) in UNSUITED:
        raise InputError(
            f"arch {arch} is not supported: it does not end in one linear layer of one output"
        )


def check_pretrained(arch: str, image_size: int, weights: str | None) -> None:
    """Raise InputError where there are no such pretrained weights; local ones are read, to see."""
    if weights is not None and Path(weights).exists():
        Classifier(arch, 1, image_size, pretrained=True, weights=weights)
    elif arch not in TOWERS:
        _known_weights(arch, weights or DEFAULT_WEIGHTS)


def check_backbone(classifier: Classifier) -> None:
    """Raise InputError unless the network can take images of its size; its mode is restored."""
    size, was_training = classifier.image_size, classifier.training
    classifier.eval()
    try:
        with torch.no_grad():
            classifier(torch.zeros(2, 3, size, size, device=classifier.head.weight.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _cannot_take(classifier.arch, size, error) from error
    classifier.train(was_training)


def classifier_state(classifier: Classifier) -> dict:
    """What `load_classifier` needs to build the same classifier again."""
    return {
        "arch": classifier.arch,
        "num_classes": classifier.num_classes,
        "image_size": classifier.image_size,
        "state_dict": classifier.state_dict(),
    }


def load_classifier(
    path: str | Path, *, arch: str | None = None, num_classes: int | None = None
) -> Classifier:
    """Load a checkpoint of this project or of the DistDiff repository, in eval mode and frozen.

    Args:
        path: `*.pth.tar` file.
        arch: Must agree with the file; needed only where the file does not say.
        num_classes: Must agree with the file, if given.

    Raises:
        InputError: Unreadable, another architecture or another class count.
    """
    content = _read(path)
    state = {
        str(key).removeprefix("module."): value for key, value in content["state_dict"].items()
    }
    found = content.get("arch")
    if found is not None and not isinstance(found, str):
        raise InputError(f"{path}: expected the name of a network as 'arch', got {brief(found)}")
    if arch is None and found is None:
        raise InputError(f"{path} does not say which network it holds; name it with --arch")
    if arch is not None and found is not None and torchvision_name(arch) != torchvision_name(found):
        raise InputError(
            f"{path} holds a {found}, not a {arch}; leave --arch out or give another file"
        )
    arch = arch or found
    check_arch(arch)
    ours = all(key.startswith(("body.", "head.")) for key in state)
    if not ours or "head.bias" not in state:
        state = _from_torchvision_names(state, arch)
    count = _num_classes(path, state)
    if num_classes is not None and count != num_classes:
        raise InputError(
            f"{path} was trained on {count} classes but the dataset has {num_classes}; "
            "train a guide on this dataset with train_original.py"
        )
    image_size = content.get("image_size", 224)
    if type(image_size) is not int or not 0 < image_size <= LARGEST_SIDE:
        raise InputError(f"{path}: image_size {brief(image_size)} is no number of pixels")
    classifier = Classifier(arch, count, image_size)
    try:
        classifier.load_state_dict(state)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # no tensors, or odd ones
        raise InputError(
            f"{path} does not fit a {arch}: {str(error).splitlines()[-1].strip()[:160]}"
        ) from error
    return classifier.eval().requires_grad_(False)


def _num_classes(path: str | Path, state: Mapping[str, Any]) -> int:
    """Length of the head's bias, which must be a stored vector beside a matrix of its height."""
    bias, weight = state["head.bias"], state.get("head.weight")
    tensors = torch.is_tensor(bias) and torch.is_tensor(weight)
    if not tensors or bias.ndim != 1 or weight.ndim != 2 or len(bias) != len(weight):
        raise InputError(f"{path}: its head.weight and head.bias are no linear layer's")
    if not 0 < len(bias) <= LARGEST_CLASSES:  # one stored number can pretend to be any number
        raise InputError(f"{path}: {len(bias)} classes; give a checkpoint of train_original.py")
    return len(bias)


def _read(path: str | Path) -> Mapping:
    if not Path(path).is_file():
        raise InputError(
            f"classifier checkpoint {path} does not exist; train it first with train_original.py"
        )
    content = _load_file(path, "give a *.pth.tar of train_original.py")
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise InputError(f"{path} holds no 'state_dict'; give a checkpoint of train_original.py")
    return content


def _load_file(path: str | Path, remedy: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        raise InputError(
            f"{path} is no readable classifier checkpoint ({type(error).__name__}); {remedy}"
        ) from error


def _network(arch: str, image_size: int) -> nn.Module:
    """The whole untrained network; some are built for one size of images."""
    if arch in OWN_BACKBONES:
        return OWN_BACKBONES[arch]()
    name = torchvision_name(arch)
    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        sized["image_size"] = image_size
    elif name.startswith("maxvit_"):
        sized["input_size"] = (image_size, image_size)
    try:
        return torchvision.models.get_model(name, weights=None, **sized)
    except (ValueError, AssertionError) as error:
        raise _cannot_take(arch, image_size, error) from error


def _cannot_take(arch: str, image_size: int, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return InputError(
        f"{arch} cannot take images of {image_size} pixels ({reason}); give another --image_size, "
        "such as 224"
    )


def _load_pretrained(network: nn.Module, arch: str, weights: str, image_size: int) -> None:
    """Fill `network` with pretrained weights, but its last linear layer."""
    state = _pretrained_state(arch, weights)
    if any(key.startswith("body.") for key in state):  # of this project, trained on other classes
        state = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    head, own = _last_linear(network), network.state_dict()
    state |= {f"{head}.{part}": own[f"{head}.{part}"] for part in ("weight", "bias")}
    try:
        if isinstance(network, VisionTransformer):
            state = interpolate_embeddings(image_size, network.patch_size, state)
        network.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()[:160]
        raise InputError(
            f"weights {weights} do not fit a {arch}: {reason}; give a state dict of that network"
        ) from error


def _pretrained_state(arch: str, weights: str) -> dict[str, Tensor]:
    """Tensors by torchvision's names, from a file or by a name that torchvision knows."""
    if Path(weights).is_file():
        content = _load_file(weights, "give a state dict saved by torch.save")
        state = content.get("state_dict", content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not all(map(_is_weight, state.values())):
            raise InputError(f"{weights} holds no state dict; give one that torch.save wrote")
    else:
        state = _download(arch, weights)
    # torchvision's own files of DenseNet say norm.1 where the network says norm1.
    renamed = r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"
    return {
        re.sub(renamed, r"\1\2", str(key).removeprefix("module.")): value
        for key, value in state.items()
    }


def _is_weight(value: object) -> bool:
    """Whether it is a tensor with plain numbers in it."""
    return torch.is_tensor(value) and value.layout == torch.strided and not value.is_meta


def _known_weights(arch: str, name: str) -> Any:
    """Where torchvision has the weights of this name; raises InputError if it has none."""
    if arch in OWN_BACKBONES:
        raise InputError(
            f"there are no pretrained weights for {arch}; use --no-pretrained, or give a file by "
            "--weights"
        )
    known = torchvision.models.get_model_weights(torchvision_name(arch)).__members__
    if name not in known:
        raise InputError(
            f"weights {name} is neither a file nor a name that {arch} has; "
            f"known: {', '.join(known) or 'none'}"
        )
    return known[name]


def _download(arch: str, weights: str) -> Mapping[str, Tensor]:
    found = _known_weights(arch, weights)
    try:
        with timeout_of_sockets():
            return found.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"cannot download the pretrained weights of {arch} ({error}); connect once, give a "
            "file by --weights, or train from scratch with --no-pretrained"
        ) from error


def _last_linear(network: nn.Module) -> str:
    return [name for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]


def _headless(network: nn.Module) -> tuple[nn.Module, int]:
    """`network` without its last linear layer, and that layer's input width."""
    name = _last_linear(network)
    width = network.get_submodule(name).in_features
    network.set_submodule(name, nn.Identity())
    return network, width


def _from_torchvision_names(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Keys of a plain torchvision network as this project's `body.*` and `head.*`."""
    head = None if arch in TOWERS else _last_linear(_network(arch, 224))
    if f"{head}.bias" not in state:
        raise InputError(f"the checkpoint lacks {head}.bias, so it does not fit a {arch}")
    return {
        key.replace(head, "head", 1) if key.startswith(f"{head}.") else f"body.{key}": value
        for key, value in state.items()
    }
