"""A training stops where its loss or its weights are no numbers any more, and says why.

Losses are looked at before every evaluation and every save, and every `LOOK_EVERY` steps: asking
a GPU for a value makes it wait for all that it was told to do. One process on a CPU has nothing to
wait for and looks after every step. Several processes look together, so that all stop together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from expansion.common.errors import InputError

LOOK_EVERY = 50  # steps


class LossWatch:
    """Notes the loss of every step and raises InputError at the first that is not finite.

    Args:
        accelerator: Device and processes.
        remedy: What to change, see `remedy`.
    """

    def __init__(self, accelerator: Accelerator, remedy: str):
        self.accelerator, self.remedy = accelerator, remedy
        alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        self.every = 1 if alone else LOOK_EVERY
        self._noted: list[tuple[int, Tensor]] = []

    def note(self, step: int, loss: Tensor) -> None:
        """Take in the loss, a scalar, of optimiser step `step`, counted from 1."""
        self._noted.append((step, loss.detach()))
        if step % self.every == 0:
            self.look()

    def look(self) -> None:
        """Check what was noted since the last look. All processes must call it at the same step.

        Raises:
            InputError: A loss is not finite, in whatever process.
        """
        if not self._noted:
            return
        steps, losses = zip(*self._noted, strict=True)
        self._noted.clear()
        means = self.accelerator.reduce(torch.stack(losses).float(), "mean").tolist()
        for step, value in zip(steps, means, strict=True):
            self.require_finite(value, f"the loss of step {step}")

    def require_finite(self, value: float, what: str) -> None:
        """Raise InputError unless `value` is finite."""
        if not math.isfinite(value):
            raise InputError(f"training has stopped: {what} is {value}; {self.remedy}")

    def require_finite_tensors(
        self, tensors: Iterable[object], what: str, remedy: str = ""
    ) -> None:
        """Raise InputError unless all tensors are finite in every process; reads the device once.

        Args:
            tensors: Others, and tensors of whole numbers, are passed over.
            what: They are called so.
            remedy: In place of the usual one.
        """
        if not all_finite(tensors, self.accelerator):
            remedy = remedy or self.remedy
            raise InputError(f"training has stopped: {what} hold NaN or infinity; {remedy}")


def all_finite(tensors: Iterable[object], accelerator: Accelerator) -> bool:
    """Whether no tensor of any process holds NaN or infinity; the same answer in all of them."""
    device = accelerator.device
    flags = [
        tensor.isfinite().all().to(device)
        for tensor in tensors
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel()
    ]
    bad = (~torch.stack(flags)).sum().float() if flags else torch.zeros((), device=device)
    return accelerator.reduce(bad, "sum").item() == 0


def remedy(option: str, rate: float, mixed_precision: str = "no") -> str:
    """The likely causes of a loss that is not finite, with what to change.

    Args:
        option: Name of the learning rate's option, and `rate` its value.
    """
    precision = ""
    if mixed_precision != "no":
        precision = f", or numbers too large for {mixed_precision} (give --mixed_precision no)"
    return (
        f"the likely cause is the learning rate: give a smaller --{option} than {rate:g}"
        f"{precision}; nothing of this was saved"
    )
