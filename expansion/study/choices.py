"""Which classifier and which diffusion model a study uses where nothing was said, and why.

Pure choices from what the images and the machine are; what can be had is asked of `machine`.
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
from expansion.study.config import Settings

SMALL_SIDE = 64  # pixels; smaller images are not enlarged to the 224 of ImageNet's networks
TINY_SIDE = 40
REHEARSAL_MODEL = "assets/tiny-sd-digits"
MODEL_GIGABYTES = 4  # of the parts of Stable Diffusion 1.x that are loaded, as the hub has them
MODEL_FILES = ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json")
ANSWER_SECONDS = 5
# Of SGD, where no rate was given. From scratch on 50 photos, 80 steps of 16 images of
# 64 pixels, ResNet-18 is right on 31 % of the test images at 0.1 (without warm-up), 43 % at 0.05,
# 73 % at 0.02 and 74 % at 0.01; ResNet-50 after 40 steps on 37 % at 0.1, 47 % at 0.02.
RATE, PRETRAINED_RATE, WARMUP = 0.02, 0.01, 0.1
PRETRAINED = ("resnet50", "resnet18")  # tried in this order; a CPU takes the second alone


@dataclass(frozen=True)
class Machine:
    """What a study runs on, and what it can get.

    Attributes:
        gpus: Their names; none: the CPU is used.
        weights: Network -> "cached", "reachable" or "" for its ImageNet weights.
    """

    gpus: Sequence[str]
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """The classifier of a study: options of the training scripts, and why these."""

    options: Mapping[str, Any]
    why: str


def scale_of(side: int) -> str:
    """The study file for images of this size."""
    return "tiny" if side <= SMALL_SIDE else "small"


def networks_to_ask_for(settings: Settings) -> list[str]:
    """Networks whose pretrained weights may be used."""
    if settings.config.pretrained is False:
        return []
    return [settings.config.arch] if settings.config.arch else list(PRETRAINED)


def choose_network(settings: Settings, side: int, num_train: int, machine: Machine) -> Network:
    """The classifier: as given, else pretrained where possible, else one for the images' size.

    Args:
        side: Median of the shorter sides of the images, pixels.
        num_train: Real images for training.
    """
    given = settings.config
    if given.arch is not None:
        had = machine.weights.get(given.arch, "")
        pretrained = bool(had) if given.pretrained is None else given.pretrained
        options = {"arch": given.arch, "pretrained": pretrained}
        start = "from ImageNet's weights" if pretrained else "from scratch"
        why = f"{given.arch} {start} (from {settings.places['arch']})"
        return _with_rate(options, settings, why)
    if side <= SMALL_SIDE:
        size = 32 if side <= TINY_SIDE else 64
        arch = "resnet10_tiny" if size == 32 or not machine.gpus else "resnet18_cifar"
        options = {"arch": arch, "pretrained": False, **_size(settings, size)}
        return _with_rate(
            options,
            settings,
            f"{arch} at {size} pixels, from scratch: the images are {side} pixels",
        )
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
    why = "from scratch, since ImageNet's weights are neither here nor to be downloaded"
    if given.pretrained is False:
        why = "from scratch, as asked for"
    if machine.gpus:
        return _with_rate({"arch": "resnet18", "pretrained": False}, settings, f"resnet18 {why}")
    options = {"arch": "resnet10_tiny", "pretrained": False, **_size(settings, SMALL_SIDE)}
    note = f"resnet10_tiny at {SMALL_SIDE} pixels, small enough for a CPU, {why}"
    return _with_rate(options, settings, note)


def _size(settings: Settings, size: int) -> dict[str, int]:
    """Input of the network, and the side that images are resized to before the crop."""
    if {"image_size", "resize_size"} & set(settings.train):
        return {}
    return {"image_size": size, "resize_size": round(size * 1.125)}


def _with_rate(options: dict[str, Any], settings: Settings, why: str) -> Network:
    """`options` with a learning rate that does not diverge on few images, if none was given.

    A network with a recipe of its own in configs/classifiers keeps that one.
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
    """Whether both name the same checkpoint, by whatever path."""
    if one is None or other is None:
        return False
    return Path(locate_model(one)).resolve() == Path(locate_model(other)).resolve()


def is_on_disk(model: str) -> bool:
    """Whether a checkpoint is a folder, or in the hub's cache.

    Raises:
        InputError: It can be neither.
    """
    check_model_folder(locate_model(model))
    if Path(locate_model(model)).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(model, name), str) for name in MODEL_FILES)


def can_be_downloaded(model: str) -> bool:
    """Whether the hub has the model, and answers within a few seconds."""
    from huggingface_hub import constants, hf_hub_url

    return not constants.HF_HUB_OFFLINE and answers(hf_hub_url(model, MODEL_FILES[0]))


def answers(url: str) -> bool:
    """Whether a file is to be had from the network, by a question of a few seconds."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return True
    except (OSError, HTTPException, ValueError):
        return False


def missing_model(model: str) -> InputError:
    """The error for a model that is not here and cannot be downloaded."""
    folder = "models--" + model.replace("/", "--")
    return InputError(
        f"the diffusion model {model} (about {MODEL_GIGABYTES} GB) is not on this machine and "
        f"cannot be downloaded: on a machine with a network run 'hf download {model}' and copy "
        f"~/.cache/huggingface/hub/{folder} here, or give another by --model FOLDER; --model "
        f"{REHEARSAL_MODEL} rehearses it all with a tiny model, which can draw digits only"
    )
