"""Chooses the classifier and the diffusion model of a study if nobody has, and says why.

The choices depend only on the images and on what the machine has, which `Machine` tells.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from expansion.common.config import CONFIG_DIR
from expansion.common.errors import InputError
from expansion.diffusion.model_files import check_model_folder, locate_model
from expansion.study.settings import Settings

SMALL_SIDE = 64  # pixels; images up to this are not enlarged to the 224 of ImageNet's networks
TINY_SIDE = 40  # pixels; images up to this are not enlarged to 64 either
REHEARSAL_MODEL = "assets/tiny-sd-digits"
MODEL_GIGABYTES = 4  # size on the hub of the parts of Stable Diffusion 1.x that are loaded
MODEL_FILES = ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json")
ANSWER_SECONDS = 5  # to wait for an answer from the network
# Learning rates of SGD if none is given. From scratch on 50 photos, 80 steps of 16 images of
# 64 pixels, ResNet-18 is right on 31 % of the test images at 0.1 (without warm-up), 43 % at 0.05,
# 73 % at 0.02 and 74 % at 0.01; ResNet-50 after 40 steps on 37 % at 0.1, 47 % at 0.02.
RATE, PRETRAINED_RATE, WARMUP = 0.02, 0.01, 0.1
PRETRAINED = ("resnet50", "resnet18")  # tried in this order; a CPU only takes the second


@dataclass(frozen=True)
class Machine:
    """The machine of a study, and the weights that are available there.

    Attributes:
        gpus: Names of the GPUs; without any, the CPU is used.
        weights: Network -> "cached", "reachable" or "" (not available) for its ImageNet weights.
    """

    gpus: Sequence[str]
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """The classifier of a study: options of the training scripts, and the reason for them."""

    options: Mapping[str, Any]
    why: str


def scale_of(side: int) -> str:
    """The name of the study file for images whose shorter side has so many pixels."""
    return "tiny" if side <= SMALL_SIDE else "small"


def networks_to_ask_for(settings: Settings) -> list[str]:
    """Networks whose pretrained weights the study may use."""
    if settings.config.pretrained is False:
        return []
    return [settings.config.arch] if settings.config.arch else list(PRETRAINED)


def choose_network(settings: Settings, side: int, num_train: int, machine: Machine) -> Network:
    """Choose the classifier: as given, else pretrained if possible, else one for the images' size.

    Args:
        settings: Settings of the study, which may give the network or a part of its options.
        side: Median of the shorter sides of the images, pixels.
        num_train: Number of real images for training.
        machine: The machine that trains.

    Raises:
        InputError: Pretrained weights are asked for and not available.
    """
    # The network that is given.
    given = settings.config
    if given.arch is not None:
        had = machine.weights.get(given.arch, "")
        pretrained = bool(had) if given.pretrained is None else given.pretrained
        options = {"arch": given.arch, "pretrained": pretrained}
        start = "from ImageNet's weights" if pretrained else "from scratch"
        why = f"{given.arch} {start} (from {settings.places['arch']})"
        return _with_rate(options, settings, why)
    # Small images: a small network from scratch.
    if side <= SMALL_SIDE:
        size = 32 if side <= TINY_SIDE else 64
        arch = "resnet10_tiny" if size == 32 or not machine.gpus else "resnet18_cifar"
        options = {"arch": arch, "pretrained": False, **_size(settings, size)}
        return _with_rate(
            options,
            settings,
            f"{arch} at {size} pixels, from scratch: the images are {side} pixels",
        )
    # A pretrained network, preferably one whose weights are on this machine.
    candidates = [] if given.pretrained is False else PRETRAINED[0 if machine.gpus else 1 :]
    by_place = [
        [a for a in candidates if machine.weights.get(a) == p] for p in ("cached", "reachable")
    ]
    for arch in [arch for archs in by_place for arch in archs][:1]:
        place = "on this machine" if machine.weights[arch] == "cached" else "to be downloaded"
        return _with_rate(
            {"arch": arch, "pretrained": True},
            settings,
            f"{arch} from ImageNet's weights ({place}), since {num_train} images are few",
        )
    if given.pretrained:
        raise InputError(
            f"--pretrained: the weights of {' and '.join(candidates)} are neither here nor "
            "to be downloaded; connect once, or leave the option out"
        )
    # No weights are available, or none are wanted.
    why = "from scratch, since ImageNet's weights are neither here nor to be downloaded"
    if given.pretrained is False:
        why = "from scratch, as asked for"
    if machine.gpus:
        return _with_rate({"arch": "resnet18", "pretrained": False}, settings, f"resnet18 {why}")
    options = {"arch": "resnet10_tiny", "pretrained": False, **_size(settings, SMALL_SIDE)}
    note = f"resnet10_tiny at {SMALL_SIDE} pixels, small enough for a CPU, {why}"
    return _with_rate(options, settings, note)


def _size(settings: Settings, size: int) -> dict[str, int]:
    """Options of the network's input and of the resize before it, unless the settings have them."""
    if {"image_size", "resize_size"} & set(settings.train):
        return {}
    return {"image_size": size, "resize_size": round(size * 1.125)}


def _with_rate(options: dict[str, Any], settings: Settings, why: str) -> Network:
    """Add a learning rate that does not diverge on few images, unless one is given.

    A network with a recipe of its own in configs/classifiers keeps the rate of the recipe.
    """
    own = (CONFIG_DIR / "classifiers" / f"{options['arch']}.yaml").is_file()
    if settings.config.lr is not None:
        options["lr"] = settings.config.lr
    elif not own and "optimizer" not in settings.train:
        options["lr"] = PRETRAINED_RATE if options["pretrained"] else RATE
        if "lr_warmup" not in settings.train:
            options["lr_warmup"] = WARMUP
    return Network(options, why)


def is_same_model(one: str | None, other: str | None) -> bool:
    """Whether both paths or names mean the same checkpoint."""
    if one is None or other is None:
        return False
    return Path(locate_model(one)).resolve() == Path(locate_model(other)).resolve()


def is_on_disk(model: str) -> bool:
    """Whether a checkpoint is a folder, or a hub id whose files are in the cache.

    Raises:
        InputError: It is a path, and no checkpoint is there.
    """
    check_model_folder(locate_model(model))
    if Path(locate_model(model)).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(model, name), str) for name in MODEL_FILES)


def can_be_downloaded(model: str) -> bool:
    """Whether the hub has the model and answers within ANSWER_SECONDS."""
    from huggingface_hub import constants, hf_hub_url

    return not constants.HF_HUB_OFFLINE and answers(hf_hub_url(model, MODEL_FILES[0]))


def answers(url: str) -> bool:
    """Whether the network has a file and answers within ANSWER_SECONDS."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return True
    except (OSError, HTTPException, ValueError):
        return False


def missing_model(model: str) -> InputError:
    """The error for a model that is not on this machine and cannot be downloaded."""
    folder = "models--" + model.replace("/", "--")
    return InputError(
        f"the diffusion model {model} (about {MODEL_GIGABYTES} GB) is not on this machine and "
        f"cannot be downloaded: on a machine with a network run 'hf download {model}' and copy "
        f"~/.cache/huggingface/hub/{folder} here, or give another by --model FOLDER; --model "
        f"{REHEARSAL_MODEL} rehearses it all with a tiny model, which can draw digits only"
    )
