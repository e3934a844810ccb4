"""What goes into a sampler and what comes out of it; imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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
        files: S file names of the real images, as their records say them; default: `sources`.
        source_index: (B,), the row of `images` that each variant starts from.
        prompts: B prompts.
        targets: (B,), the labels of the variants.
        source_seeds: S seeds, for random numbers that all variants of a real image share.
        numbers: B numbers of the variants; default: from 0 for each real image.
    """

    images: Tensor
    sources: Sequence[str]
    source_index: Tensor
    prompts: Sequence[str]
    targets: Tensor
    source_seeds: Sequence[int]
    files: Sequence[str] = ()
    numbers: Sequence[int] = ()

    def __post_init__(self):
        if not self.files:
            object.__setattr__(self, "files", self.sources)
        if not self.numbers:
            index = self.source_index.tolist()
            numbers = [index[:row].count(source) for row, source in enumerate(index)]
            object.__setattr__(self, "numbers", numbers)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        height, width = self.images.shape[-2:]
        return height, width

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
            files=[self.files[i] for i in used.tolist()],
            numbers=self.numbers[start:stop],
        )

    def groups(self, size: int) -> list[range]:
        """The rows of each group: variants 0 to `size` - 1 of a real image, the next ones, ...

        Args:
            size: Variants of a whole group; the last one of an image may have fewer.
        """
        rows = itertools.groupby(range(len(self)), self.group_of(size))
        units = [list(members) for _, members in rows]
        return [range(unit[0], unit[-1] + 1) for unit in units]

    def group_of(self, size: int) -> Callable[[int], tuple[str, int]]:
        """Tells the group that a row belongs to; see `groups`."""
        # By file: with a random crop each variant has a source of its own.
        files = [self.files[source] for source in self.source_index.tolist()]
        return lambda row: (files[row], self.numbers[row] // size)


@dataclass(frozen=True)
class Samples:
    """Generated images (B, 3, H, W) in [0, 1], and figures (B,) about them for the manifest."""

    images: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)
