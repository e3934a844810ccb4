"""What every method offers: a sampler that turns real images into variants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from expansion.common.errors import require
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples
from expansion.images.records import ImageRecord, Picture, given_records
from expansion.images.variants import Variant, variant_name

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Generator


class Sampler(ABC):
    """A method. It knows no disk, command line, rank, progress bar or global random state.

    Attributes:
        pipeline: The checkpoint.
        config: Its settings.
        batch_size: Images that `variants` denoises together.
    """

    pipeline: StableDiffusionPipeline
    config: SamplerConfig
    batch_size: int = 8

    @classmethod
    @abstractmethod
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

    @abstractmethod
    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Look at all real images, once, before sampling."""

    @abstractmethod
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """One variant per row of `batch`.

        Randomness comes from that row's generator, or, where variants of one real image share it,
        from `batch.source_seeds`.
        """

    def save_memory(self) -> bool:
        """Use less memory from now on, at the cost of time; False if there is no way to."""
        return False

    def check_labels(self, labels: Sequence[int] | None) -> None:
        """Raise InputError for labels, None if none are given, that the method cannot do with."""
        return  # most need none

    def prepare_images(self, images: Sequence[Picture], labels: Sequence[int]) -> None:
        """`prepare` from Pillow images or paths, with their labels from 0."""
        self.check_labels(labels)
        self.prepare(given_records(images, labels=labels))

    def variants(
        self,
        images: Sequence[Picture],
        *,
        prompts: str | Sequence[str],
        labels: Sequence[int] | None = None,
        number: int = 1,
        names: Sequence[str] | None = None,
        seed: int = 42,
        resolution: int | None = None,
    ) -> list[list[Image.Image]]:
        """Variants of real images: a list for each image, `number` in it.

        They are those of expand.py for images of these names at equal run seed, resolution, batch
        size and number format. The images become square as `config.resize_mode` says.

        Args:
            images: Pillow images of any size and mode, or paths.
            prompts: One for each image, or one for all.
            labels: Of the images, from 0; some methods do without.
            names: Decide the noise, with `seed`; default: "0", "1", ...
            seed: Run seed.
            resolution: Side of the variants, pixels; default: the checkpoint's own.

        Raises:
            InputError: The lists differ in length, or an image cannot be read.
        """
        from expansion.diffusion.variants import Drawing, own_resolution, variants_of

        require(number > 0, f"number {number}: give 1 or more variants of each image")
        self.check_labels(labels)
        records = given_records(images, names, labels)
        texts = [prompts] * len(records) if isinstance(prompts, str) else list(prompts)
        require(
            len(texts) == len(records),
            f"{len(texts)} prompts for {len(records)} images; give one for each, or one text",
        )
        wanted = [
            Variant(r, k, variant_name(r.file_name, k), text)
            for r, text in zip(records, texts, strict=True)
            for k in range(number)
        ]
        drawing = Drawing(seed, resolution or own_resolution(self), self.config.resize_mode)
        made = variants_of(self, wanted, drawing, self.batch_size)
        return [made[i : i + number] for i in range(0, len(made), number)]
