"""What every method offers: a config, and a sampler that turns real images into variants.

This module imports no torch, so that options and plans are known before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from expansion.config import option, require

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Generator, Tensor

    from expansion.image_datasets import ImageRecord


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
        """U-Net row-evaluations per generated image, `num_variants` being made of each real one."""
        return self.executed_steps * self.rows_per_prediction

    def check_run(self) -> None:
        """Raise InputError if a run lacks something that a library user would pass as an object."""

    def input_files(self) -> Mapping[str, str]:
        """Files, by option, whose content decides the images."""
        return {}


@dataclass(frozen=True)
class Batch:
    """Real images and the variants asked of them.

    Attributes:
        images: (S, 3, H, W) in [0, 1], the distinct real images.
        sources: S names; equal names mean equal images, so work can be kept.
        source_index: (B,) row of `images` that each variant starts from.
        prompts: B prompts.
        targets: (B,) labels.
        source_seeds: S seeds, of the random numbers that all variants of a real image share.
    """

    images: Tensor
    sources: Sequence[str]
    source_index: Tensor
    prompts: Sequence[str]
    targets: Tensor
    source_seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int) -> Batch:
        """The variants from `start` to before `stop`, with the real images they need."""
        index = self.source_index[start:stop]
        used = index.unique()
        return Batch(
            images=self.images[used],
            sources=[self.sources[i] for i in used.tolist()],
            source_index=(index[:, None] == used).int().argmax(dim=1),
            prompts=self.prompts[start:stop],
            targets=self.targets[start:stop],
            source_seeds=[self.source_seeds[i] for i in used.tolist()],
        )


@dataclass(frozen=True)
class Samples:
    """Generated images (B, 3, H, W) in [0, 1], and figures (B,) about them for the manifest."""

    images: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)


class Sampler(Protocol):
    """A method. It knows no disk, command line, rank, progress bar or global random state."""

    pipeline: StableDiffusionPipeline

    @classmethod
    def build(
        cls,
        config: Any,
        class_names: Sequence[str],
        load_pipeline: Callable[[], StableDiffusionPipeline],
    ) -> Sampler:
        """Construct from files named in `config`, which are checked before the pipeline loads.

        Args:
            class_names: The dataset's, by label.
        """

    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Look at all real images, once, before sampling."""

    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """One variant per row of `batch`.

        Randomness comes from that row's generator, or, where variants of one real image share it,
        from `batch.source_seeds`.
        """

    def save_memory(self) -> bool:
        """Use less memory from now on, at the cost of time; False if there is no way to."""
        return False
