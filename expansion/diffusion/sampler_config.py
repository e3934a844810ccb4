"""Settings of denoising that all methods share.

This module imports no torch, so that options and plans are known before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from expansion.common.config import option, refuse_idle
from expansion.common.errors import require

if TYPE_CHECKING:
    from expansion.images.records import ImageRecord

SOLVERS = ("ddim", "euler", "dpmsolver++", "unipc", "lcm", "tcd")
STATELESS = ("ddim", "euler")  # solvers whose step knows nothing of the steps before
CONSISTENCY = ("lcm", "tcd")  # solvers for distilled models, on a timestep grid of their own
OWN_SOLVERS = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}  # scheduler of a folder -> solver
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Settings of denoising that all methods share; a method adds its own by inheritance."""

    num_inference_steps: int = option(50, "DDIM steps of the whole schedule")
    strength: float = option(
        0.5, "share of the schedule that is run, 0 to 1; more departs further from the real image"
    )
    solver: str | None = option(
        None,
        "what takes the steps; dpmsolver++ and unipc are approximations of second order that need "
        "fewer of them: give --num_inference_steps 20, say; euler (ddim that ends without noise), "
        "lcm and tcd are for models that were distilled to take 1 to 8; default: lcm or tcd where "
        "the folder's own scheduler is that, else ddim",
        choices=SOLVERS,
    )
    timestep_spacing: str | None = option(
        None,
        "where ddim and the others place their steps; trailing is what Turbo-, Lightning- and "
        "Hyper-models were distilled for; default: the checkpoint's own",
        choices=TIMESTEP_SPACINGS,
        added_later=True,
    )
    tcd_gamma: float = option(
        0.3,
        "tcd: share of noise, 0 to 1, that each step but the last draws anew; 0 is deterministic",
        added_later=True,
    )
    cache_interval: int = option(
        1,
        "compute the whole U-Net in every so many steps, and reuse its deep features in between "
        "(DeepCache, arXiv 2312.00858), an approximation; 1: in every step",
        added_later=True,
    )
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 or less: off")
    guidance_interval: tuple[float, ...] = option(
        (0.0, 1.0),
        "the two ends of the part of the schedule that is guided, from 0, the clean image, to 1, "
        "pure noise; steps outside take one U-Net row in place of two (arXiv 2404.07724)",
        added_later=True,
    )
    negative_prompt: str = option("", "prompt of the unconditional prediction")
    resize_mode: str = option(
        "center_crop",
        "real image to square: crop after resizing the shorter side, a random crop per "
        "variant, or squash",
        choices=("center_crop", "random_crop", "squash"),
    )

    # True if the images of one class influence the variants of another image.
    depends_on_dataset: ClassVar[bool] = False
    # True if something that the method needs was trained on the real images before.
    is_trained_before: ClassVar[bool] = False
    # True if the U-Net takes the latents of the real image beside those that it denoises.
    needs_image_unet: ClassVar[bool] = False
    # True if what prompts call the classes decides the images beyond the prompts themselves.
    tells_clip_the_classes: ClassVar[bool] = False
    # False if the method itself changes the features that `cache_interval` would reuse.
    reuses_features: ClassVar[bool] = True
    # U-Net rows of an image in a step that is guided.
    guided_rows: ClassVar[int] = 2

    def __post_init__(self):
        require(
            self.num_inference_steps > 0,
            f"num_inference_steps {self.num_inference_steps}: give a positive number",
        )
        require(0 < self.strength <= 1, f"strength {self.strength}: give more than 0 and at most 1")
        interval = self.cache_interval
        require(interval > 0, f"cache_interval {interval}: give a positive number")
        require(
            self.reuses_features or interval == 1,
            f"cache_interval {interval}: this method changes the U-Net's features in every step, "
            "so there are none to reuse; leave it out",
        )
        require(
            self.executed_steps > 0,
            f"strength {self.strength} of {self.num_inference_steps} steps leaves none to run; "
            "raise one",
        )
        self._check_solver()
        interval = self.guidance_interval
        require(
            len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1,
            f"guidance_interval {' '.join(map(str, interval))}: give two shares of the schedule "
            "from 0 to 1, the cleaner end first, such as 0.1 0.8",
        )
        require(
            self.guidance_scale <= 1 or any(map(self.is_guided, range(self.executed_steps))),
            f"guidance_interval {' '.join(map(str, interval))} holds none of the "
            f"{self.executed_steps} steps that are run; widen it, or switch guidance off with "
            "--guidance_scale 1",
        )
        if not self.takes_negative_prompt:
            off = f"guidance_scale {self.guidance_scale:g} switches off"
            refuse_idle(self, ("negative_prompt",), f"is for guidance, which {off}")

    def _check_solver(self) -> None:
        """Raise InputError for settings that the solver has no use for."""
        solver = self.solver  # None: whatever the checkpoint says, which is checked again then
        require(0 <= self.tcd_gamma <= 1, f"tcd_gamma {self.tcd_gamma}: give 0 to 1")
        if solver not in (None, "tcd"):
            refuse_idle(self, ("tcd_gamma",), f"is a setting of the solver tcd, not of {solver}")
        require(
            self.timestep_spacing is None or solver not in CONSISTENCY,
            f"timestep_spacing {self.timestep_spacing}: the solver {solver} has timesteps of its "
            "own; leave it out",
        )

    @property
    def resolved_solver(self) -> str:
        """The solver: the one given, or ddim as long as the checkpoint is not known."""
        return self.solver or "ddim"

    def on_checkpoint(self, scheduler: Mapping[str, Any]) -> Self:
        """These settings with the solver that counts.

        Args:
            scheduler: Config of the checkpoint's own scheduler.

        Raises:
            InputError: The method cannot be used with that solver.
        """
        if self.solver is not None:
            return self
        own = str(scheduler.get("_class_name"))
        return dataclasses.replace(self, solver=OWN_SOLVERS.get(own, "ddim"))

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether there is guidance, away from the negative prompt."""
        return self.guidance_scale > 1

    @property
    def variants_per_group(self) -> int:
        """Variants of a real image that are computed together, as they influence each other."""
        return 1

    @property
    def executed_steps(self) -> int:
        """Steps that are run: the last min(int(S * strength), S) of S, as diffusers counts them."""
        return min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    def is_guided(self, step: int) -> bool:
        """Whether a step takes classifier-free guidance.

        Args:
            step: Its place in the schedule, from 0, the last one, to `num_inference_steps` - 1.
        """
        low, high = (share * self.num_inference_steps for share in self.guidance_interval)
        return self.guidance_scale > 1 and low - 1e-9 <= step < high - 1e-9

    def rows_of_steps(self, first: int, count: int) -> int:
        """U-Net rows of an image in `count` steps: `guided_rows` for each that is guided, else one.

        Args:
            first: The first of the steps, the noisiest, as `is_guided` counts them.
            count: How many there are.
        """
        return sum(self.guided_rows if self.is_guided(first - i) else 1 for i in range(count))

    def unet_rows_per_image(self, num_variants: int) -> float:
        """Rows that go through the U-Net for each generated image; reports show it as the cost.

        `num_variants` are made of each real image, which may share a part of the cost.
        """
        return self.rows_of_steps(self.executed_steps - 1, self.executed_steps)

    @property
    def training_rows(self) -> float:
        """U-Net rows, forward and backward, that training what the settings name took before."""
        return 0.0

    def prompt_names(
        self, class_names: Sequence[str], prompt_names: Sequence[str]
    ) -> Sequence[str]:
        """What prompts call the classes, by label, if the method has names of its own.

        Args:
            class_names: As the dataset has them.
            prompt_names: As prompts have them with other methods.
        """
        return prompt_names

    def class_prompts(self, class_name: str, prompt_name: str) -> Sequence[str]:
        """The method's own prompts of a class, of which each variant takes one; empty: none.

        They serve where neither a template nor a prompts file is given.

        Args:
            class_name: As the dataset has it.
            prompt_name: As prompts have it.
        """
        return ()

    def check_images(
        self,
        records: Sequence[ImageRecord],
        class_names: Sequence[str],
        model: str,
        revision: str | None,
    ) -> None:
        """Raise InputError if what the settings name does not fit the real images or the model.

        Args:
            records: The real images that are expanded, with their contents.
            class_names: By label.
            model: The checkpoint: hub id or path.
            revision: Branch, tag or commit of a hub id.
        """

    def check_prompts(self, given: Collection[tuple[str, str]]) -> None:
        """Raise InputError for prompts that the method cannot use.

        Args:
            given: Pairs of a prompt and the name of its class, as `prompt_names` has it; those of
                the real images that are expanded. Only what a user's template or file says.
        """

    def check_run(self) -> None:
        """Raise InputError if a command must name a file (of a guide, say) and names none.

        Users of the library may pass an object instead, so the constructor does not check this.
        """

    def input_files(self) -> Mapping[str, str]:
        """Option -> file, for the files whose content decides the images."""
        return {}

    def input_folders(self) -> Mapping[str, str]:
        """Option -> folder, for the folders whose files decide the images."""
        return {}
