"""Settings of GIF-SD; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from expansion.classifier.clip_files import check_clip, clip_files
from expansion.common.config import option
from expansion.common.errors import require
from expansion.common.hub import check_revision
from expansion.data.prompts import class_prompt, preset_prompts
from expansion.diffusion.sampler_config import SamplerConfig

OPTION = "--clip_model"


@dataclass(frozen=True, kw_only=True)
class GIFConfig(SamplerConfig):
    """GIF-SD, "Expanding small-scale datasets with guided imagination" (arXiv 2211.13976).

    The defaults are those that most of the natural image sets have in the released code, whose
    values differ by set: docs/methods.md lists them. Departures from that code: img2img starts from
    the step that it noises to, as diffusers does, where the code starts one step further on; each
    variant takes the next of the 50 prompts in place of a random one; CLIP sees normalised images
    (`clip_compat`), and the divergence is the paper's (`divergence`).
    """

    strength: float = option(
        0.9, "share of the schedule that is run, 0 to 1; more departs further from the real image"
    )
    guidance_scale: float = option(50.0, "classifier-free guidance; 1 or less: off")
    resize_mode: str = option(
        "squash",
        "real image to square: crop after resizing the shorter side, a random crop per "
        "variant, or squash",
        choices=("center_crop", "random_crop", "squash"),
    )
    rotation: float = option(
        15.0, "largest angle, degrees, by which the real image is turned before a group starts"
    )
    flip: bool = option(True, "mirror the real image before every other group, at random")
    group_size: int = option(
        2, "variants of a real image that are optimised together, to differ from each other"
    )
    step_size: float = option(0.1, "what the one step adds to or takes from w and b each")
    constraint_value: float = option(0.8, "epsilon: largest change of an element of the latent")
    class_label: str = option(
        "zero_shot",
        "class whose probability the score keeps up: what CLIP takes the real image for (the "
        "released code), or the real image's label (the paper's words)",
        choices=("zero_shot", "label"),
    )
    divergence: str = option(
        "paper",
        "paper: divergence of each variant's features from their mean; released: -logsumexp of "
        "the mean, which the authors' code computes in its place",
        choices=("paper", "released"),
    )
    clip_model: str = option(
        "openai/clip-vit-base-patch32", "CLIP that scores the images: hub id or local folder"
    )
    clip_revision: str | None = option(None, "branch, tag or commit of --clip_model on the hub")
    clip_template: str = option(
        "This is a photo of a {}", "text that stands for a class; {} becomes its name"
    )
    clip_compat: str = option(
        "clip",
        "clip: images are normalised as the model wants it; released: as in the authors' code, "
        "real images with CIFAR's mean and deviation, generated ones not at all",
        choices=("clip", "released"),
    )

    tells_clip_the_classes: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        require(
            0 <= self.rotation <= 180,
            f"rotation {self.rotation}: give 0 to 180 degrees, 0 for none",
        )
        require(self.group_size > 0, f"group_size {self.group_size}: give 1 or more variants")
        for name in ("step_size", "constraint_value"):
            require(getattr(self, name) >= 0, f"{name} {getattr(self, name)}: give 0 or more")
        class_prompt(self.clip_template, "")

    @property
    def variants_per_group(self) -> int:
        return self.group_size

    def class_prompts(self, class_name: str, prompt_name: str) -> Sequence[str]:
        return preset_prompts("gif", prompt_name)

    def check_run(self) -> None:
        check_revision(self.clip_model, self.clip_revision, "--clip_revision")
        check_clip(self.clip_model, OPTION)

    def input_files(self) -> Mapping[str, str]:
        files = clip_files(self.clip_model, OPTION)  # none for a hub id, which says what it is
        names = ["clip_model", *(f"clip_model_{i}" for i in range(1, len(files)))]
        return {name: str(path) for name, path in zip(names, files, strict=False)}
