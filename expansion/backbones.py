"""Classifiers: a torchvision backbone by name, split into pooled features and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet, resnet18

from expansion.config import unknown_name
from expansion.errors import InputError

# The papers' names, where torchvision spells them otherwise.
ALIASES = {
    "resnext50": "resnext50_32x4d",
    "wideresnet50": "wide_resnet50_2",
    "mobilenetv2": "mobilenet_v2",
}


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
        pretrained: Load torchvision's ImageNet weights.

    Raises:
        InputError: Unknown `arch`, or no pretrained weights to be had.
    """

    def __init__(self, arch: str, num_classes: int, image_size: int, pretrained: bool = False):
        super().__init__()
        self.arch, self.num_classes, self.image_size = arch, num_classes, image_size
        self.body, num_features = _headless(_build(arch, pretrained))
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
    if torchvision_name(arch) not in (*known, *OWN_BACKBONES):
        raise unknown_name("arch", arch, [*ALIASES, *OWN_BACKBONES, *known])
    if torchvision_name(arch) in UNSUITED:
        raise InputError(
            f"arch {arch} is not supported: it does not end in one linear layer of one output"
        )


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
    count = len(state["head.bias"])
    if num_classes is not None and count != num_classes:
        raise InputError(
            f"{path} was trained on {count} classes but the dataset has {num_classes}; "
            "train a guide on this dataset with train_original.py"
        )
    classifier = Classifier(arch, count, content.get("image_size", 224))
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit a {arch}: {str(error).splitlines()[-1].strip()[:160]}"
        ) from error
    return classifier.eval().requires_grad_(False)


def _read(path: str | Path) -> Mapping:
    if not Path(path).is_file():
        raise InputError(
            f"classifier checkpoint {path} does not exist; train it first with train_original.py"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        raise InputError(
            f"{path} is no readable classifier checkpoint ({type(error).__name__}); "
            "give a *.pth.tar of train_original.py"
        ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise InputError(f"{path} holds no 'state_dict'; give a checkpoint of train_original.py")
    return content


def _build(arch: str, pretrained: bool) -> nn.Module:
    check_arch(arch)
    if arch in OWN_BACKBONES:
        if pretrained:
            raise InputError(f"there are no pretrained weights for {arch}; use --no-pretrained")
        return OWN_BACKBONES[arch]()
    try:
        return torchvision.models.get_model(
            torchvision_name(arch), weights="IMAGENET1K_V1" if pretrained else None
        )
    except (URLError, OSError) as error:
        raise InputError(
            f"cannot download the pretrained weights of {arch} ({error}); "
            "connect once, or train from scratch with --no-pretrained"
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
    head = _last_linear(_build(arch, pretrained=False))
    if f"{head}.bias" not in state:
        raise InputError(f"the checkpoint lacks {head}.bias, so it does not fit a {arch}")
    return {
        key.replace(head, "head", 1) if key.startswith(f"{head}.") else f"body.{key}": value
        for key, value in state.items()
    }
