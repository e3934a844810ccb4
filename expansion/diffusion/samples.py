"""What goes into a sampler and what comes out of it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """S real images and the B variants asked of them.

    Attributes:
        images: The distinct real images, (S, 3, H, W) in [0, 1].
        sources: S names of the real images. Equal names mean equal images, also in later batches,
            so a sampler may keep what it computed for a name.
        source_index: (B,), the row of `images` that each variant starts from.
        prompts: B prompts.
        targets: (B,), the labels of the variants.
        source_seeds: S seeds, for random numbers that all variants of a real image share.
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
        """The variants `start` to `stop` - 1 alone, with the real images that they need."""
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
