"""Settings that textual inversion and Diffusion Inversion share; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from expansion.common.config import deciding, option
from expansion.common.errors import require
from expansion.data.datasets import DEFAULT_DATASET
from expansion.diffusion.model_files import LARGEST_RESOLUTION

# One row forward, and one backward: the backward pass goes through the activations alone, as no
# weight of the U-Net has a gradient, and takes about as many operations as the forward pass.
ROWS_PER_VISIT = 2


@dataclass(frozen=True, kw_only=True)
class EmbeddingTrainingConfig:
    """Settings of training embeddings on the images of each class, with a frozen checkpoint."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie", decides=False)
    output_dir: str | None = option(None, "folder for the embeddings", decides=False)
    pretrained_model_name_or_path: str = option(
        "CompVis/stable-diffusion-v1-4",
        "checkpoint, which stays as it is: hub id, diffusers folder or single .safetensors file",
        decides=False,
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id", decides=False)
    shots: int | None = option(None, "use only this many images per class", decides=False)
    subset_seed: int = option(0, "which images --shots keeps", decides=False)
    subset_file: str | None = option(
        None,
        "JSON list of the images that --shots kept: read if it exists, else written",
        decides=False,
    )
    test_fraction: float | None = option(
        None, "share of each class that is for testing, of a set that is not split", decides=False
    )
    on_error: str = option(
        "fail", "what an unreadable image does", choices=("fail", "skip"), decides=False
    )
    resolution: int | None = option(
        None, "training resolution, pixels; default: the checkpoint's own"
    )
    resize_mode: str = option(
        "squash",
        "real image to square: squash, or crop after resizing the shorter side",
        choices=("squash", "center_crop"),
    )
    random_flip: bool = option(True, "mirror images at random; wrong for digits and text")
    train_batch_size: int = option(4, "images per optimiser step")
    gradient_accumulation_steps: int = option(
        1,
        "parts that each step's images are processed in, for less memory; same result but for "
        "rounding",
        decides=False,
    )
    learning_rate: float = option(5e-4, "learning rate of AdamW, constant")
    adam_weight_decay: float = option(1e-2, "AdamW's weight decay")
    mixed_precision: str = option("no", "autocast", choices=("no", "bf16"))
    checkpointing_steps: int = option(100, "steps between resumable states; 0: none", decides=False)
    split: int | None = option(None, "number of this shard, from 0", decides=False)
    total_split: int | None = option(
        None, "number of shards, among which the classes are divided", decides=False
    )
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one", decides=False)
    seed: int = option(0, "random seed")

    # What the folder of embeddings says of itself.
    kind: ClassVar[str]
    command: ClassVar[str]

    def __post_init__(self):
        require(self.output_dir is not None, "give --output_dir for the embeddings")
        for name in ("train_batch_size", "gradient_accumulation_steps", "learning_rate"):
            value = getattr(self, name)
            require(value > 0, f"{name} {value}: give a positive number")
        for name in ("adam_weight_decay", "checkpointing_steps"):
            value = getattr(self, name)
            require(value >= 0, f"{name} {value}: give 0 or a positive number")
        require(
            self.gradient_accumulation_steps <= self.train_batch_size,
            f"gradient_accumulation_steps {self.gradient_accumulation_steps}: a step has only "
            f"{self.train_batch_size} images; give fewer parts or a larger batch",
        )
        resolution = self.resolution
        require(
            resolution is None or 0 < resolution <= LARGEST_RESOLUTION,
            f"resolution {resolution}: give 1 to {LARGEST_RESOLUTION} pixels",
        )

    @property
    def step_size(self) -> float:
        """The learning rate that AdamW gets."""
        return self.learning_rate

    def settings(self) -> dict[str, Any]:
        """All that decides the embeddings, but for the checkpoint and the images."""
        return deciding(self)

    def visits(self, num_images: int) -> int:
        """How often the U-Net sees an image of a class, forward and backward, all together.

        Args:
            num_images: Training images of the class.
        """
        raise NotImplementedError

    def unet_rows(self, num_images: int) -> int:
        """The cost of a class of so many images: a visit is a row forward and one backward."""
        return ROWS_PER_VISIT * self.visits(num_images)
