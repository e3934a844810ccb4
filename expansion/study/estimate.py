"""Estimates the time and disk space of a study before it begins.

The time is the number of operations over the rate of the device. Operations of a U-Net row, of the
autoencoder and of a classifier's image are counted on networks without weights. The rate is that of
a large matrix product, times the share that networks reach. The estimate is right within a factor
of two or three. Only `probe` and `count` load torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from expansion.study.choices import answers

EFFICIENCY = 0.4  # of a network's arithmetic, against a matrix product
GUIDED = 1.5  # a method that a classifier guides also goes backward through the networks
FORWARD_AND_BACK = 3.0  # operations of an optimiser step, in forward passes
LOADING_SECONDS = 3e-9  # per byte of a classifier's input: resize, crop, colours
BYTES_PER_PIXEL = 1.7  # of a PNG
COPIES = 5  # of a network's weights in a run folder: two checkpoints with momentum, and more
MORE_LEARNING = (
    2.0  # a training that decides about the labels of generated images, against one that does not
)


@dataclass(frozen=True)
class Work:
    """Amounts of work.

    Attributes:
        rows: U-Net rows; those of guided methods count GUIDED times.
        images: Images to generate.
        pixels: Pixels of all these images together.
        trained: Images that pass through the training of classifiers, counted at every pass.
        evaluated: Images that are only classified.
        runs: Trainings.
    """

    rows: float = 0
    images: float = 0
    pixels: float = 0
    trained: float = 0
    evaluated: float = 0
    runs: float = 0

    def plus(self, other: Work, share: float = 1.0) -> Work:
        """This work and a share (from 0) of another one, added up."""
        mine, its = astuple(self), astuple(other)
        return Work(*(a + share * b for a, b in zip(mine, its, strict=True)))


@dataclass(frozen=True)
class Costs:
    """Seconds of one unit of each kind of work on one device, and the bytes of a run on disk."""

    row: float
    image: float
    trained: float
    evaluated: float
    run_bytes: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of a study's generating and training, and its gigabytes on disk."""

    generating: float
    training: float
    gigabytes: float

    @property
    def seconds(self) -> float:
        """Seconds of generating and training together."""
        return self.generating + self.training


def estimate(work: Work, costs: Costs, num_devices: int) -> Estimate:
    """Estimate the time and disk space of work.

    Args:
        work: The work that is left.
        costs: What a unit of it takes on one device.
        num_devices: Number of equal devices that work side by side.
    """
    generating = work.rows * costs.row + work.images * costs.image
    training = work.trained * costs.trained + work.evaluated * costs.evaluated
    written = work.pixels * BYTES_PER_PIXEL + work.runs * costs.run_bytes
    return Estimate(generating / num_devices, training / num_devices, written / 1e9)


def costs_of(facts: Mapping[str, float]) -> Costs:
    """The costs of units of work, from the operations and the rate that `count` gives."""
    rate = facts["rate"] * EFFICIENCY

    def seconds(operations: float) -> float:
        return operations / rate

    loading = facts["input_bytes"] * LOADING_SECONDS
    return Costs(
        row=seconds(facts["unet"]),
        image=seconds(facts["vae"]),
        trained=seconds(FORWARD_AND_BACK * facts["classifier"]) + loading,
        evaluated=seconds(facts["classifier"]),
        run_bytes=4.0 * COPIES * facts["parameters"],
    )


def duration(seconds: float) -> str:
    """A duration in words: "about a minute", "about 5 minutes", "about 3 hours", "about 2 days"."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if round(seconds / length) > 1:
            return f"about {round(seconds / length)} {unit}"
    return "about a minute"


def probe(networks: list[str]) -> dict[str, Any]:
    """Look for this process's GPUs and for ImageNet weights; returns the fields of `Machine`.

    Args:
        networks: Backbones whose weights are looked for.
    """
    import torch
    import torchvision

    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    weights = {}
    folder = Path(torch.hub.get_dir(), "checkpoints")
    known = torchvision.models.list_models(torchvision.models)
    for network in networks:
        if network not in known:
            continue
        known_weights = torchvision.models.get_model_weights(network).__members__
        of_imagenet = known_weights.get("IMAGENET1K_V1")
        if of_imagenet is not None:
            on_disk = (folder / Path(of_imagenet.url).name).is_file()
            weights[network] = "cached" if on_disk else "reachable" * answers(of_imagenet.url)
    return {"gpus": gpus, "weights": weights}


def count(model: str, resolution: int, arch: str, image_size: int, num_classes: int) -> dict:
    """Count the operations of units of work, and measure the rate of this process's device.

    Args:
        model: Diffusers folder; for other checkpoints the sizes of Stable Diffusion 1.x are taken.
        resolution: Side of the generated images, pixels.
        arch: Backbone of the classifier.
        image_size: Side of the classifier's input, pixels.
        num_classes: Number of its classes.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from expansion.benchmarks import random_networks
    from expansion.benchmarks.sampling_arms import matrix_rate, unet_flops
    from expansion.classifier.backbones import Classifier
    from expansion.common.devices import device_and_dtype
    from expansion.common.quiet import quiet_libraries
    from expansion.diffusion.stable_diffusion import DTYPES

    # Networks on the meta device have shapes, but neither weights nor results.
    with torch.device("meta"), quiet_libraries(), torch.no_grad():
        if Path(model).is_dir():
            unet, vae = (
                part.from_config(part.load_config(model, subfolder=name))
                for part, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
            )
        else:
            unet, vae = random_networks.unet(), random_networks.autoencoder()
        side = resolution // 2 ** (len(vae.config.block_out_channels) - 1)
        classifier = Classifier(arch, num_classes, image_size).eval()
        with FlopCounterMode(display=False) as of_vae:
            vae.decode(torch.zeros(1, vae.config.latent_channels, side, side))
        with FlopCounterMode(display=False) as of_classifier:
            classifier(torch.zeros(1, 3, image_size, image_size))
        facts = {
            "unet": unet_flops(unet, side),
            "vae": of_vae.get_total_flops(),
            "classifier": of_classifier.get_total_flops(),
            "parameters": sum(weight.numel() for weight in classifier.parameters()),
            "input_bytes": 3 * image_size**2,
        }
    # The rate, in the number format that generation uses on this device.
    device, dtype = device_and_dtype("auto", "auto")
    return {**facts, "rate": matrix_rate(torch.device(device), DTYPES[dtype])}
