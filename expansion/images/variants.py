"""An image that is to be made, as plan, loop, sampler and store all know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from expansion.images.records import ImageRecord

VariantKey = tuple[str, int]  # (file_name of the real image, number), as manifests name a variant


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One image that is to be made of a real one.

    The plan makes each variant once, so that two are equal only if they are the same object.

    Attributes:
        source: The real image; its file name and `number` decide the noise.
        number: Which of the variants of that real image this is, from 0.
        file_name: `<class folder>/<stem>_expand_<number>.png`, below the folder of the set.
        prompt: Text that says what the image is to show.
    """

    source: ImageRecord
    number: int
    file_name: str
    prompt: str

    @property
    def key(self) -> VariantKey:
        """File name of the real image and number, by which manifests name the variant."""
        return self.source.file_name, self.number


def group_by(size: int) -> Callable[[Variant], VariantKey]:
    """Tells a variant's group: the first `size` variants of its real image, the next ones, ..."""
    return lambda variant: (variant.source.file_name, variant.number // size)


def variant_name(stem: str, variant: int) -> str:
    """Path of a generated image below the output folder.

    Args:
        stem: `<class folder>/<stem>` of the real image.
        variant: Number of the variant, from 0.
    """
    return f"{stem}_expand_{variant}.png"
