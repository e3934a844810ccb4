"""Settings of denoising that all methods share.

This module imports no torch, so that options and plans are known before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import require

SOLVERS = ("ddim", "dpmsolver++", "unipc")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Settings of denoising that all methods share; a method adds its own by inheritance."""

    num_inference_steps: int = option(50, "DDIM steps of the whole schedule")
    strength: float = option(
        0.5, "share of the schedule that is run, 0 to 1; more departs further from the real image"
    )
    solver: str = option(
        "ddim",
        "what takes the steps; dpmsolver++ and unipc are approximations of second order that need "
        "fewer of them: give --num_inference_steps 20, say",
        choices=SOLVERS,
    )
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 or less: off")
    negative_prompt: str = option("", "prompt of the unconditional prediction")
    resize_mode: str = option(
        "center_crop",
        "real image to square: crop after resizing the shorter side, a random crop per "
        "variant, or squash",
        choices=("center_crop", "random_crop", "squash"),
    )

    # True if the images of one class influence the variants of another image.
    depends_on_dataset: ClassVar[bool] = False

    def __post_init__(self):
        require(
            self.num_inference_steps > 0,
            f"num_inference_steps {self.num_inference_steps}: give a positive number",
        )
        require(0 < self.strength <= 1, f"strength {self.strength}: give more than 0 and at most 1")
        require(
            self.executed_steps > 0,
            f"strength {self.strength} of {self.num_inference_steps} steps leaves none to run; "
            "raise one",
        )

    @property
    def executed_steps(self) -> int:
        """Steps that are run: the last min(int(S * strength), S) of S, as diffusers counts them."""
        return min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    @property
    def rows_per_prediction(self) -> int:
        """U-Net rows per image and step: two with classifier-free guidance."""
        return 2 if self.guidance_scale > 1 else 1

    def unet_rows_per_image(self, num_variants: int) -> float:
        """Rows that go through the U-Net for each generated image; reports show it as the cost.

        `num_variants` are made of each real image, which may share a part of the cost.
        """
        return self.executed_steps * self.rows_per_prediction

    def check_run(self) -> None:
        """Raise InputError if a command must name a file (of a guide, say) and names none.

        Users of the library may pass an object instead, so the constructor does not check this.
        """

    def input_files(self) -> Mapping[str, str]:
        """Option -> file, for the files whose content decides the images."""
        return {}
