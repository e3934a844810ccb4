"""Classifiers: a torchvision backbone or CLIP's by name, as pooled features and a linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from expansion.classifier.classifier_files import (
    StoredNetwork,
    fill,
    lone_linear,
    order_of_classes,
    read_network,
)
from expansion.classifier.clip_backbone import (
    TOWERS,
    ClipVision,
    build_tower,
    load_tower,
    normalization_change,
)
from expansion.classifier.small_resnets import OWN_BACKBONES
from expansion.classifier.weight_names import TIMM_ARCHS, clip_tower_state, torchvision_state
from expansion.common.errors import InputError, brief, unknown_name
from expansion.common.hub import timeout_of_sockets

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


class Classifier(nn.Module):
    """`features` (B, D) of normalised images (B, 3, H, W), and `forward`: logits (B, N).

    Args:
        arch: Name of the backbone.
        num_classes: N.
        image_size: Side of the input that it is trained on, pixels.
        pretrained: Start from pretrained weights.
        weights: Which; a name of torchvision's or a file, for CLIP also a hub id or a folder.
        zero_init_residual: Start every residual block as the identity; not with `pretrained`.

    Raises:
        InputError: Unknown `arch`, an `image_size` that it cannot take, no residual blocks to start
            so, or no pretrained weights to be had.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        image_size: int,
        pretrained: bool = False,
        weights: str | None = None,
        zero_init_residual: bool = False,
    ):
        super().__init__()
        self.arch, self.num_classes, self.image_size = arch, num_classes, image_size
        check_arch(arch)
        if arch in TOWERS:
            self.body = _pretrained_tower(arch, weights) if pretrained else build_tower(arch)
            num_features = self.body.num_features
        else:
            network = _network(arch, image_size)
            if zero_init_residual:
                _start_as_identity(network)
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
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Classifier:
    """Load a classifier of this project, the DistDiff repository or another program.

    Args:
        path: Of `torch.save` or safetensors; see `classifier_files` and `weight_names`.
        arch: Must agree with the file; needed only where the file does not say.
        num_classes: Must agree with the file, if given.
        class_names: The dataset's. Its logits come in this order, whatever that of the file.

    Returns:
        In eval mode and frozen.

    Raises:
        InputError: Unreadable, another architecture, other classes or another number of them.
    """
    if not Path(path).is_file():
        raise InputError(
            f"classifier checkpoint {path} does not exist; train it first with train_original.py"
        )
    stored = read_network(path, "give a checkpoint of train_original.py, or a state dict")
    arch = _arch_of(stored, arch)
    state = _project_names(stored, arch)
    count = _num_classes(path, state)
    if class_names is not None:
        num_classes = len(class_names)
    if num_classes is not None and count != num_classes:
        raise InputError(
            f"{path} was trained on {count} classes but the dataset has {num_classes}; "
            "train a guide on this dataset with train_original.py"
        )
    image_size = stored.facts.get("image_size", 224)
    if type(image_size) is not int or not 0 < image_size <= LARGEST_SIDE:
        raise InputError(f"{path}: image_size {brief(image_size)} is no number of pixels")
    if class_names is not None:
        order = order_of_classes(stored, count, class_names)
        if order is not None:
            state |= {key: state[key][order] for key in ("head.weight", "head.bias")}
    classifier = Classifier(arch, count, image_size)
    fill(classifier, state, path, arch)
    return classifier.eval().requires_grad_(False)


def load_named_classifier(path: str | Path) -> tuple[Classifier, tuple[str, ...]]:
    """A classifier as `load_classifier` gives it, and the names of its classes.

    Raises:
        InputError: As `load_classifier`, and where the file has no name for each class.
    """
    classifier = load_classifier(path)
    names = read_network(path, "give a checkpoint of train_original.py").facts.get("class_names")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    count = classifier.num_classes
    if not named or len(names) != count or len(set(names)) != count:
        raise InputError(
            f"{path} knows {count} classes and names {len(names) if named else 'none'}; give a run "
            "of train_original.py or train_expand.py"
        )
    return classifier, tuple(names)


def _arch_of(stored: StoredNetwork, arch: str | None) -> str:
    """The backbone that a file holds, which it or `arch` says; timm's names are understood."""
    path, found = stored.path, stored.facts.get("arch")
    if found is not None and not isinstance(found, str):
        raise InputError(f"{path}: expected the name of a network as 'arch', got {brief(found)}")
    if arch is None and found is None:
        raise InputError(f"{path} does not say which network it holds; name it with --arch")
    if found is not None:
        bare = found.partition(".")[0]  # timm: resnet50.a1_in1k
        found = TIMM_ARCHS.get(bare, bare)
    if arch is not None and found is not None and torchvision_name(arch) != torchvision_name(found):
        raise InputError(
            f"{path} holds a {found}, not a {arch}; leave --arch out or give another file"
        )
    arch = arch or found
    check_arch(arch)
    return arch


def _project_names(stored: StoredNetwork, arch: str) -> dict[str, Tensor]:
    """A file's weights as this project's `body.*` and `head.*`."""
    state = stored.state
    if all(key.startswith(("body.", "head.")) for key in state) and "head.bias" in state:
        return dict(state)
    if arch in TOWERS:
        state, head, prefix = _tower_state(state), "fc", "body.tower."
    else:
        state, prefix = torchvision_state(state), "body."
        head = _last_linear(_network(arch, 224))
    if f"{head}.bias" not in state:  # a backbone within a model with a head of its own
        body = {f"body.{key}" for key in build_body(arch, 224).state_dict()}
        head = lone_linear((k for k in state if f"{prefix}{k}" not in body), state) or head
    if f"{head}.bias" not in state:
        raise InputError(
            f"{stored.path} lacks {head}.bias, so it does not fit a {arch}; give a classifier of "
            "that network with its last linear layer"
        )
    return {
        key.replace(head, "head", 1) if key.startswith(f"{head}.") else f"{prefix}{key}": value
        for key, value in state.items()
    }


def build_body(arch: str, image_size: int) -> nn.Module:
    """An untrained backbone without its last linear layer."""
    return build_tower(arch) if arch in TOWERS else _headless(_network(arch, image_size))[0]


def _tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scale, shift = normalization_change()
    return clip_tower_state(state, scale, shift)


def _num_classes(path: str | Path, state: Mapping[str, Any]) -> int:
    """Length of the head's bias, which must be a stored vector beside a matrix of its height."""
    bias, weight = state["head.bias"], state.get("head.weight")
    if weight is None or bias.ndim != 1 or weight.ndim != 2 or len(bias) != len(weight):
        raise InputError(f"{path}: its head.weight and head.bias are no linear layer's")
    if not 0 < len(bias) <= LARGEST_CLASSES:  # one stored number can pretend to be any number
        raise InputError(f"{path}: {len(bias)} classes; give a checkpoint of train_original.py")
    return len(bias)


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


def _start_as_identity(network: nn.Module) -> None:
    """Zero the last gamma of every residual block, as `zero_init_residual` of torchvision does."""
    for block in network.modules():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)


def _cannot_take(arch: str, image_size: int, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return InputError(
        f"{arch} cannot take images of {image_size} pixels ({reason}); give another --image_size, "
        "such as 224"
    )


def _load_pretrained(network: nn.Module, arch: str, weights: str, image_size: int) -> None:
    """Fill `network` with pretrained weights, but its last linear layer."""
    if Path(weights).is_file():
        state = _body_of_file(weights, arch, prefix="")
    else:
        state = torchvision_state(_download(arch, weights))
    head, own = _last_linear(network), network.state_dict()
    surplus = [key for key in state if key not in own]
    stray = lone_linear(surplus, state)  # another model's own head
    state = {k: v for k, v in state.items() if not (stray and k.startswith(f"{stray}."))}
    state |= {f"{head}.{part}": own[f"{head}.{part}"] for part in ("weight", "bias")}
    if isinstance(network, VisionTransformer):
        try:
            state = interpolate_embeddings(image_size, network.patch_size, state)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()[:160]
            raise InputError(
                f"weights {weights} do not fit a {arch}: {reason}; give a state dict of that "
                "network"
            ) from error
    fill(network, state, f"weights {weights}", arch)


def _pretrained_tower(arch: str, weights: str | None) -> ClipVision:
    """CLIP's image tower from a file, or from a hub id or folder."""
    if weights is None or not Path(weights).is_file():
        return load_tower(arch, weights)
    vision = build_tower(arch)
    state = _body_of_file(weights, arch, prefix="tower.")
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    fill(vision.tower, state, f"weights {weights}", arch)
    return vision


def _body_of_file(weights: str, arch: str, prefix: str) -> dict[str, Tensor]:
    """A file's weights by the names of the library that makes the backbone.

    Args:
        prefix: Of the library's network within this project's body.
    """
    state = read_network(weights, "give a state dict saved by torch.save or safetensors").state
    ours = f"body.{prefix}"
    if any(key.startswith(ours) for key in state):  # of this project, trained on other classes
        return {k.removeprefix(ours): v for k, v in state.items() if k.startswith(ours)}
    return _tower_state(state) if arch in TOWERS else torchvision_state(state)


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
