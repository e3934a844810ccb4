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
    from torch import Generator

    from expansion.diffusion.families import Pipeline


class Sampler(ABC):
    """A method: makes variants of real images with a checkpoint.

    A sampler knows no disk, command line, rank, progress bar or global random state.

    Attributes:
        pipeline: The checkpoint.
        config: Settings of the method.
        batch_size: Number of images that `variants` denoises together.
    """

    pipeline: Pipeline
    config: SamplerConfig
    batch_size: int = 8

    @classmethod
    @abstractmethod
    def build(
        cls,
        config: Any,
        class_names: Sequence[str],
        prompt_names: Sequence[str],
        load_pipeline: Callable[[], Pipeline],
    ) -> Sampler:
        """Construct the sampler; files that `config` names are checked before the pipeline loads.

        Args:
            config: Settings of the method, an instance of its own config class.
            class_names: The dataset's class names, by label.
            prompt_names: What prompts call the classes, by label.
            load_pipeline: Loads the checkpoint, which may take minutes; call it last.
        """

    @abstractmethod
    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Look at all real images; called once, before `sample`."""

    @abstractmethod
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Make one variant for each of the B rows of `batch`.

        All random numbers of a variant come from its own generator. Those that the variants of one
        real image share come from `batch.source_seeds`. So an image does not depend on the others.

        Args:
            batch: Real images, and which of them each variant starts from.
            generators: B, one for each variant, on the CPU.

        Returns:
            B images, and figures about them for the manifest.
        """

    def save_memory(self) -> bool:
        """Use less memory from now on, at the cost of time; False if there is no (further) way."""
        return False

    def check_labels(self, labels: Sequence[int] | None) -> None:
        """Raise InputError for labels that the method cannot use; None: there are no labels."""
        return  # most methods need none

    def prepare_images(self, images: Sequence[Picture], labels: Sequence[int]) -> None:
        """Call `prepare` with images that a caller of the library gives.

        Args:
            images: Pillow images or paths.
            labels: One for each image, from 0.
        """
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
        """Make variants of real images in memory.

        They equal those of expand.py for images of the same names, run seed, resolution, batch size
        and number format. The real images become square as `config.resize_mode` says.

        Args:
            images: Pillow images of any size and mode, or paths.
            prompts: One for each image, or one for all.
            labels: One for each image, from 0; some methods do without.
            number: Number of variants of each image.
            names: Together with `seed` they decide the noise; default: "0", "1", ...
            seed: Run seed.
            resolution: Side of the variants, pixels, a multiple of the factor by which latents are
                smaller; default: the checkpoint's own.

        Returns:
            For each image a list of `number` square RGB images.

        Raises:
            InputError: The lists differ in length, an image cannot be read, or the checkpoint makes
                no images of that resolution.
        """
        from expansion.diffusion.stable_diffusion import usable_resolution
        from expansion.diffusion.variants import Drawing, variants_of

        # What is asked for.
        require(number > 0, f"number {number}: give 1 or more variants of each image")
        side = usable_resolution(self.pipeline, resolution)
        self.check_labels(labels)
        records = given_records(images, names, labels)
        texts = [prompts] * len(records) if isinstance(prompts, str) else list(prompts)
        require(
            len(texts) == len(records),
            f"{len(texts)} prompts for {len(records)} images; give one for each, or one text",
        )
        # Variants as a run of expand.py has them, so that the noise is the same.
        wanted = [
            Variant(r, k, variant_name(r.file_name, k), text)
            for r, text in zip(records, texts, strict=True)
            for k in range(number)
        ]
        drawing = Drawing(seed, side, self.config.resize_mode)
        made = variants_of(self, wanted, drawing, self.batch_size)
        return [made[i : i + number] for i in range(0, len(made), number)]
