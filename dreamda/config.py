"""Settings of DreamDA's sampler; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import require
from expansion.diffusion.sampler_config import SamplerConfig

FEATURE_LOCATIONS = ("bottleneck", "encoder", "decoder")
LATENT_LOCATIONS = ("xt", "xT", "x0")

# Share of Stable Diffusion 1.x's arithmetic that comes after the bottleneck (64x64 latents).
UP_SHARE = 0.674


@dataclass(frozen=True, kw_only=True)
class DreamDAConfig(SamplerConfig):
    """Settings of inversion and perturbation (paper sec. 4.2).

    The defaults are those of the authors' released code.
    """

    reuses_features: ClassVar[bool] = False

    num_inference_steps: int = option(100, "DDIM steps of the whole schedule")
    strength: float = option(
        0.8, "share of the schedule that is inverted and run, 0 to 1; more departs further"
    )
    resize_mode: str = option(
        "squash",
        "real image to square: crop after resizing the shorter side, a random crop per "
        "variant, or squash",
        choices=("center_crop", "random_crop", "squash"),
    )
    inversion: str = option(
        "cycle",
        "cycle: CycleDiffusion's encoder of latents and noises (needs eta above 0); "
        "ddim: deterministic inversion (eta 0)",
        choices=("cycle", "ddim"),
    )
    inversion_per: str = option(
        "image",
        "what the variants of a real image share: image, the whole inversion (paper); trajectory, "
        "its latents and x_T, the noises after that are anew per variant (released code); variant, "
        "nothing",
        choices=("image", "trajectory", "variant"),
    )
    eta: float | None = option(
        None, "share of DDPM's noise in a step, 0 to 1; default: 1 with cycle, 0 with ddim"
    )
    source_prompt: str = option("", "prompt under which the real image is inverted")
    source_guidance_scale: float = option(
        1.5, "guidance of the inversion; idle if source_prompt equals negative_prompt"
    )
    source_batch_size: int = option(
        16, "steps of one inversion that are predicted together", decides=False
    )
    perturb: str = option(
        "released",
        "released: the perturbed prediction makes the whole step, noise differs between the "
        "guidance rows; eq6: it makes the predicted x_0 alone, with one noise for both rows",
        choices=("released", "eq6"),
    )
    location: str = option(
        "bottleneck",
        "what is perturbed: U-Net features (bottleneck; output of every encoder or decoder "
        "block), or latents (xt: after every step but the last, xT: the first, x0: the last)",
        choices=(*FEATURE_LOCATIONS, *LATENT_LOCATIONS),
    )
    noise_scale: float = option(3.0, "standard deviation of the perturbation")
    noise_scale_mode: str = option(
        "absolute",
        "absolute: noise_scale as it is (paper); relative: times the standard deviation of "
        "what is perturbed, which carries over to other checkpoints",
        choices=("absolute", "relative"),
    )

    def __post_init__(self):
        super().__post_init__()
        # The noise share must suit the kind of inversion.
        require(
            self.resolved_solver == "ddim",
            f"solver {self.solver}: the inversion is one of ddim's steps; give --solver ddim, and "
            "in place of a checkpoint for lcm or tcd the one that it was distilled from",
        )
        eta = self.resolved_eta
        require(
            self.inversion == "ddim" or 0 < eta <= 1,
            f"eta {eta:g}: inversion cycle stores the noise of each step, so give more than 0 and "
            "at most 1, or --inversion ddim",
        )
        require(
            self.inversion == "cycle" or eta == 0,
            f"eta {eta:g}: inversion ddim is deterministic; leave eta out, or --inversion cycle",
        )
        require(
            self.inversion == "cycle" or self.inversion_per != "trajectory",
            "inversion_per trajectory draws the noises after x_T anew, but inversion ddim has "
            "none; "
            "give image or variant, or --inversion cycle",
        )
        # The perturbation.
        require(self.noise_scale >= 0, f"noise_scale {self.noise_scale}: give 0 or more")
        require(
            self.source_batch_size > 0,
            f"source_batch_size {self.source_batch_size}: give a positive number",
        )
        require(
            self.perturb != "eq6" or self.perturbs_features,
            f"perturb eq6 compares a clean with a perturbed prediction, but location "
            f"{self.location} perturbs latents; give {', '.join(FEATURE_LOCATIONS)}, or "
            "--perturb released",
        )
        require(
            self.location != "xt" or self.executed_steps > 1,
            f"location xt perturbs latents between steps, and strength {self.strength} of "
            f"{self.num_inference_steps} steps runs one alone; raise one, or give --location xT",
        )

    @property
    def resolved_eta(self) -> float:
        """The `eta` that is used: the one given, or the default of the kind of inversion."""
        if self.eta is None:
            return 1.0 if self.inversion == "cycle" else 0.0
        return self.eta

    @property
    def takes_negative_prompt(self) -> bool:
        return super().takes_negative_prompt or self.source_guidance_scale > 1

    @property
    def perturbs_features(self) -> bool:
        """Whether U-Net features are perturbed, and not latents."""
        return self.location in FEATURE_LOCATIONS

    @property
    def source_rows_per_prediction(self) -> int:
        """U-Net rows per step of an inversion; guidance between equal prompts does nothing."""
        guided = self.source_guidance_scale > 1 and self.source_prompt != self.negative_prompt
        return 2 if guided else 1

    def unet_rows_per_image(self, num_variants: int) -> float:
        rows = super().unet_rows_per_image(num_variants)
        if self.perturb == "eq6":
            rows *= 2 if self.location == "encoder" else 1 + UP_SHARE
        shared_by = num_variants if self.inversion_per == "image" else 1
        return rows + self.executed_steps * self.source_rows_per_prediction / shared_by
