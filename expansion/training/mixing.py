"""How the labelled batches of a training are made up of real and generated images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expansion.images.records import ImageRecord

if TYPE_CHECKING:
    from expansion.data.batches import StreamBatches


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What is drawn for the labelled batches; by default all images are shuffled together.

    Attributes:
        real_share: Share of real images in every batch; None: their share of all images.
        replace_probability: That a generated image stands in for the real image it was made from;
            more than 0: generated images come into the batches in no other way.
        only_generated: Leave the real images out.
    """

    real_share: float | None = None
    replace_probability: float = 0.0
    only_generated: bool = False

    def images_per_epoch(self, num_real: int, num_generated: int) -> int:
        """Images of one epoch, of which the numbers are trained on."""
        return num_real if self.replace_probability else num_real + num_generated

    def batches(self, records: Sequence[ImageRecord]) -> Callable[..., StreamBatches]:
        """What makes the batches of `records`, given the arguments of `StreamBatches`.

        Args:
            records: Labelled images; generated ones tell the real image that they were made from.
        """
        from expansion.data.batches import FixedShare, StandIns, StreamBatches

        real, generated = by_origin(records)
        if self.replace_probability:
            made: dict[str | None, list[int]] = {records[i].file_name: [] for i in real}
            for i in generated:
                made[records[i].source].append(i)
            stand_ins = {i: made[records[i].file_name] for i in real}
            return functools.partial(StandIns, stand_ins, self.replace_probability)
        # Self-training may have accepted no generated image.
        if self.real_share is not None and generated:
            return functools.partial(FixedShare, real, generated, self.real_share)
        return functools.partial(StreamBatches, len(records))


NATURAL = Mixing()


def by_origin(records: Sequence[ImageRecord]) -> tuple[list[int], list[int]]:
    """Numbers of the real and of the generated images."""
    real = [i for i, record in enumerate(records) if record.source is None]
    generated = [i for i, record in enumerate(records) if record.source is not None]
    return real, generated
