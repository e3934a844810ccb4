"""Reuse of the U-Net's deep features between steps (DeepCache, arXiv 2312.00858).

Deep are all blocks but the first downsampling and the last upsampling one. From one step to the
next their output hardly changes, while it takes most of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class FeatureCache:
    """Lets a U-Net compute its deep features in some steps alone.

    Args:
        unet: Has at least two levels, and a mid block or none.
        interval: Every so many steps all is computed; 1 computes all in every step.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int):
        self.unet = unet
        self.interval = interval
        self.kept: dict[nn.Module, Any] = {}
        self.reusing = False

    @property
    def deep(self) -> list[nn.Module]:
        """The blocks whose output is reused."""
        middle = [] if self.unet.mid_block is None else [self.unet.mid_block]
        return [*self.unet.down_blocks[1:], *middle, *self.unet.up_blocks[:-1]]

    @contextmanager
    def steps(self, timesteps: Sequence[int], whole: bool = False) -> Iterator[Iterator[int]]:
        """Inside, the U-Net is to be called once for each timestep that the iterator gives.

        Args:
            timesteps: A stretch of steps, of which the first computes all.
            whole: Whether all steps do.
        """
        if whole or self.interval == 1:
            yield iter(timesteps)
            return
        blocks = self.deep
        for block in blocks:
            block.forward = self._keeping(block, block.forward)
        try:
            yield self._taken(timesteps)
        finally:
            for block in blocks:
                del block.forward  # the class's own shows again
            self.kept.clear()
            self.reusing = False

    def _taken(self, timesteps: Sequence[int]) -> Iterator[int]:
        for number, timestep in enumerate(timesteps):
            self.reusing = number % self.interval != 0
            yield timestep

    def _keeping(self, block: nn.Module, forward: Any) -> Any:
        """A forward that gives what the block gave last, if the step reuses it."""

        def keep(*inputs: Any, **options: Any) -> Any:
            rows = len(inputs[0] if inputs else options["hidden_states"])
            if self.reusing and _rows(self.kept[block]) == rows:
                return self.kept[block]
            self.kept[block] = forward(*inputs, **options)
            return self.kept[block]

        return keep


def _rows(output: Tensor | Sequence[Tensor]) -> int:
    """Number of rows of a block's output, which comes with its skip connections or alone."""
    return len(output if isinstance(output, Tensor) else output[0])
