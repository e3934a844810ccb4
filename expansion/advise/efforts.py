"""How much work a pilot puts into its answer, chosen by the time that it may take.

Rounds with more and more repeats for fewer and fewer arms are successive halving (Jamieson &
Talwalkar 2016, arXiv 1502.07943), with seeds as the resource.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """The size of a pilot.

    Attributes:
        folds: Parts K of the training images, each of which is left out once.
        variants: Images that are made of each real one.
        steps: Share of the optimiser steps of the advised study.
        repeats: Number of seeds that an arm has been trained with by the end of each round.
    """

    folds: int
    variants: int
    steps: float
    repeats: tuple[int, ...]


# From the largest to the smallest; the first that fits the time is taken.
EFFORTS = (
    Effort(5, 10, 1.0, (1, 2, 4)),
    Effort(5, 5, 1.0, (1, 2, 4)),
    Effort(5, 5, 0.5, (1, 2, 4)),
    Effort(4, 4, 0.5, (1, 2, 3)),
    Effort(3, 3, 0.5, (1, 2, 3)),
    Effort(3, 3, 0.5, (1, 2)),
    Effort(2, 2, 0.5, (1, 2)),
    Effort(2, 2, 0.25, (1,)),
)


def efforts_for(smallest_class: int, most_variants: int) -> list[Effort]:
    """The efforts that the images allow, from the largest to the smallest.

    Args:
        smallest_class: Number of training images of the smallest class: there are at most as many
            parts, so that no class lacks images for training.
        most_variants: Images that the advised study makes of each real one.
    """
    fitting = [
        Effort(
            min(effort.folds, smallest_class),
            min(effort.variants, most_variants),
            effort.steps,
            effort.repeats,
        )
        for effort in EFFORTS
    ]
    return list(dict.fromkeys(fitting))
