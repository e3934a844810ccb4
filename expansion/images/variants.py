"""An image to be made: the one name that plan, loop, sampler and store have for it."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.images.records import ImageRecord

VariantKey = tuple[str, int]  # (file_name of the real image, number), as manifests name a variant


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One image to be made: of which real image, which number, under which name.

    The plan makes each once, so that two are equal only if they are the same object.

    Attributes:
        source: The real image; its file name and `number` decide the noise.
        number: From 0.
        file_name: `<class folder>/<stem>_expand_<number>.png`, below the folder of the set.
        prompt: What the image is to show.
    """

    source: ImageRecord
    number: int
    file_name: str
    prompt: str

    @property
    def key(self) -> VariantKey:
        """How manifests name it."""
        return self.source.file_name, self.number


def variant_name(stem: str, variant: int) -> str:
    """Path of a generated image below the output folder."""
    return f"{stem}_expand_{variant}.png"
