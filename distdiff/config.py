"""Settings of DistDiff; imports no torch, so that options and plans are quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from expansion.common.config import option, refuse_idle
from expansion.common.errors import require, unknown_name
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.weight_files import weight_files

TARGETS = ("global_prototype", "local_prototype")
ENERGIES = ("prototypes", "chamfer", "entropy")


@dataclass(frozen=True, kw_only=True)
class DistDiffConfig(SamplerConfig):
    """Settings of hierarchical energy guidance (paper sec. 3).

    The defaults are those of the authors' released script.
    """

    encoder_weight_path: str | None = option(
        None, "checkpoint of the guide classifier, from train_original.py"
    )
    arch: str | None = option(
        None, "guide backbone, if the checkpoint does not say", flags=("-a",), decides=False
    )
    optimize_targets: str = option(
        "global_prototype-local_prototype",
        "parts of the energy prototypes, joined by '-': global_prototype (class), local_prototype "
        "(group); or none, which is plain img2img",
    )
    energy: str = option(
        "prototypes",
        "what guidance lowers: energies with weights, as in prototypes:1+chamfer:0.5; prototypes "
        "(DistDiff's own), chamfer (two-sided distance between the variants of a group and the "
        "real images of the class), entropy (makes images that the guide is unsure of)",
        added_later=True,
    )
    group_size: int = option(
        5, "variants of a real image that chamfer looks at together", added_later=True
    )
    K: int = option(3, "group prototypes per class")
    guidance_type: str = option(
        "transform_guidance",
        "transform_guidance: scale and shift the latent once (the method); "
        "direct_guidance: move the latent itself at every step of the window (the ablation)",
        choices=("transform_guidance", "direct_guidance"),
    )
    transform_start: str = option(
        "random",
        "where the gradient step on scale and shift starts: random, at a draw (paper), which takes "
        "most elements to the edge of epsilon by itself; inside, at the same draw made so small "
        "that no element moves by more than half of epsilon; identity, at the latent itself",
        choices=("random", "inside", "identity"),
        added_later=True,
    )
    guidance_step: int = option(20, "M: the window opens M steps before the end")
    guidance_period: int = option(2, "m: steps of the window; the energy is their mean")
    rho: float = option(10.0, "step size of the gradient update")
    rho_mode: str = option(
        "raw",
        "gradient as it is, its sign, or scaled to unit length",
        choices=("raw", "sign", "unit"),
    )
    constraint_value: float = option(0.2, "epsilon: largest change of a latent element")
    gs: float = option(1.0, "weight of the class-prototype energy; the paper's lambda_c")
    ls: float = option(1.0, "weight of the group-prototype energy; the paper's lambda_g")
    energy_compat: str = option(
        "paper",
        "paper: unit-length features of normalised images; released: as the authors' code "
        "computes, from images in [-1, 1] without the guide's normalisation, and with features "
        "that have unit length in direct_guidance alone",
        choices=("paper", "released"),
    )
    loss_scale: float = option(
        1024.0, "factor on the energy during back-propagation in 16 bits", decides=False
    )
    gradient_checkpointing: bool = option(
        False,
        "recompute activations in the guided steps from the start: less memory, more time; "
        "without it, only once memory ran out",
        decides=False,
    )
    guidance_decoder: str | None = option(
        None,
        "approximation: a tiny decoder (AutoencoderTiny: hub id or diffusers folder, such as "
        "madebyollin/taesd) makes the images whose energy guides; default: the checkpoint's own",
    )
    log_energy: bool = option(
        False,
        "also measure the energy without guidance and after it, and the share of elements at the "
        "edge before the gradient, for the manifest: slower",
        decides=False,
    )

    depends_on_dataset: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        # Which energies act; without any, the settings of guidance are idle and not checked.
        unknown = [t for t in self.optimize_targets.split("-") if t not in (*TARGETS, "none")]
        require(
            not unknown
            and (self.optimize_targets == "none" or "none" not in self.optimize_targets),
            f"optimize_targets '{self.optimize_targets}': join some of {', '.join(TARGETS)} by "
            "'-', or none",
        )
        energies = self.energies
        require(self.group_size > 0, f"group_size {self.group_size}: give a positive number")
        if "chamfer" not in energies:
            refuse_idle(self, ("group_size",), "is for the energy chamfer")
        require(
            self.optimize_targets != "none" or self.energy == type(self).energy,
            f"energy {self.energy}: optimize_targets none is plain img2img, without any; give one",
        )
        require(
            self.energy_compat == "paper" or set(energies) <= {"prototypes"},
            f"energy {self.energy}: energy_compat released is for prototypes alone",
        )
        if not energies:
            return
        # The window of guided steps must lie within the steps that are run.
        executed = self.executed_steps
        require(self.K > 0, f"K {self.K}: give at least 1 group per class")
        require(
            self.guidance_period > 0, f"guidance_period {self.guidance_period}: give at least 1"
        )
        require(
            self.guidance_step <= executed,
            f"guidance_step {self.guidance_step} lies before the first of the {executed} "
            "executed steps, so "
            f"guidance would never act; give at most {executed}, or raise strength or "
            "num_inference_steps",
        )
        require(
            self.guidance_period <= self.guidance_step,
            f"guidance_period {self.guidance_period} reaches beyond the last step; "
            f"give at most guidance_step, {self.guidance_step}",
        )
        for name in ("rho", "constraint_value"):
            require(getattr(self, name) >= 0, f"{name} {getattr(self, name)}: give 0 or more")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Raise InputError for settings of parts of the guidance that do not act."""
        if self.guidance_type != "transform_guidance":
            of_transform = ("transform_start", "constraint_value")
            refuse_idle(self, of_transform, "is for guidance_type transform_guidance")
        if "prototypes" not in self.energies:
            of_prototypes = ("optimize_targets", "K", "gs", "ls")
            refuse_idle(self, of_prototypes, "is for the energy prototypes")
        if "global_prototype" not in self.targets:
            refuse_idle(self, ("gs",), "is for optimize_targets global_prototype")
        if "local_prototype" not in self.targets:
            refuse_idle(self, ("K", "ls"), "is for optimize_targets local_prototype")

    def check_run(self) -> None:
        require(
            not self.energies or self.encoder_weight_path is not None,
            "DistDiff needs a guide classifier: train one with train_original.py on this "
            "dataset and give its "
            "checkpoint as --encoder_weight_path checkpoint/.../seed1/model_best.pth.tar",
        )

    @property
    def energies(self) -> dict[str, float]:
        """Name -> weight of the energies that guide; empty for plain img2img.

        Raises:
            InputError: An energy is unknown or named twice, or a weight is no number.
        """
        weights: dict[str, float] = {}
        for part in self.energy.split("+"):
            name, _, weight = (text.strip() for text in part.partition(":"))
            if name not in ENERGIES:
                raise unknown_name("energy", name, ENERGIES)
            require(name not in weights, f"energy {self.energy}: {name} occurs twice")
            try:
                weights[name] = float(weight or 1)
            except ValueError:
                weights[name] = math.nan
            require(
                math.isfinite(weights[name]),
                f"energy {self.energy}: write NAME:WEIGHT, such as prototypes:1+entropy:0.1",
            )
        return {} if self.optimize_targets == "none" else weights

    @property
    def variants_per_group(self) -> int:
        return self.group_size if "chamfer" in self.energies else 1

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the parts of the energy `prototypes`; empty for plain img2img."""
        return tuple(t for t in self.optimize_targets.split("-") if t != "none")

    def input_files(self) -> Mapping[str, str]:
        if not self.energies:
            return {}
        files = {"encoder_weight_path": self.encoder_weight_path}
        folder = Path(self.guidance_decoder or "nowhere")
        if self.guidance_decoder and folder.is_dir():  # a hub id says itself what it is
            files["guidance_decoder"] = str(weight_files(folder, ".")[-1])
        return files

    def unet_rows_per_image(self, num_variants: int) -> float:
        rows = super().unet_rows_per_image(num_variants)
        if self.energies and self.guidance_type == "transform_guidance":
            look_aheads = 2 if self.log_energy else 1
            first = self.guidance_step - 1
            rows += look_aheads * self.rows_of_steps(first, self.guidance_period)
        return rows
