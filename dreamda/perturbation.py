"""Gaussian noise on U-Net features or latents (DreamDA sec. 4.2, Eq. 6, and its Table 1).

Everything acts through forward hooks on an unmodified `UNet2DConditionModel`; leaving a context
removes them, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn

Change = Callable[[Tensor], Tensor]


class GaussianNoise:
    """Adds Gaussian noise to tensors; each image's noise comes from its own generator.

    Args:
        scale: Standard deviation of the noise.
        relative: Multiply `scale` by the standard deviation of each image's own tensor.
        generators: B, one per image.
        shared: Draw one noise for all rows of an image instead of one per row.
    """

    def __init__(
        self, scale: float, *, relative: bool, generators: Sequence[Generator], shared: bool
    ):
        self.scale, self.relative, self.shared = scale, relative, shared
        self.generators = generators
        self._stds: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return a new tensor with noise added.

        Args:
            tensor: (R B, C, h, w), whose row r B + b belongs to image b. R is 2 for features under
                classifier-free guidance, else 1.
        """
        rows = tensor.float().unflatten(0, (-1, len(self.generators)))  # (R, B, C, h, w)
        num_drawn = 1 if self.shared else len(rows)
        noise = torch.stack(
            [torch.randn(num_drawn, *rows.shape[2:], generator=g) for g in self.generators], dim=1
        )
        if tensor.is_cuda:  # from pinned memory the copy does not wait for the work in the queue
            noise = noise.pin_memory()
        noise = noise.to(tensor.device, non_blocking=True)
        std = rows.transpose(0, 1).flatten(1).std(dim=1)  # (B,)
        self._stds.append(std)
        unit = std[:, None, None, None] if self.relative else 1.0
        return (rows + self.scale * unit * noise).flatten(0, 1).to(tensor.dtype)

    def mean_std(self) -> Tensor:
        """Standard deviation (B,) of each image's tensors before noise, averaged over the calls."""
        return torch.stack(self._stds).mean(dim=0)


@contextmanager
def perturbed_features(unet: UNet2DConditionModel, location: str, change: Change) -> Iterator[None]:
    """Inside this context, features of `unet` pass through `change`.

    Args:
        unet: Is given forward hooks, which are removed at the end.
        location: "bottleneck" is the output of the middle block, with skips untouched; "encoder"
            that of every down block, also where it is a skip; "decoder" that of every up block.
        change: Maps features (rows, C, h, w) to the same shape.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        hidden_states, skips = output  # a down block's; its last skip is its output
        changed = change(hidden_states)
        return changed, tuple(changed if skip is hidden_states else skip for skip in skips)

    blocks = {
        "bottleneck": [unet.mid_block],
        "encoder": unet.down_blocks,
        "decoder": unet.up_blocks,
    }[location]
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(hook).remove)
        yield


@contextmanager
def forked_features(unet: UNet2DConditionModel, location: str, change: Change) -> Iterator[None]:
    """Inside this context, `unet` returns clean predictions of its rows, then perturbed ones.

    What comes before the first perturbed block is computed once: the rows are doubled at the
    bottleneck, or at the input if the encoder is perturbed.

    Args:
        unet: Is given forward hooks, which are removed at the end.
        location: As in `perturbed_features`.
        change: Is applied to the second half of the doubled rows.
    """

    def change_second_half(features: Tensor) -> Tensor:
        clean, perturbed = features.chunk(2)
        return torch.cat([clean, change(perturbed)])

    def double_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return _twice(output)

    def double_inputs(module: nn.Module, positional: tuple, named: dict) -> tuple[tuple, dict]:
        return _twice(positional), _twice(named)

    def double_context(module: nn.Module, positional: tuple, named: dict) -> tuple[tuple, dict]:
        hidden_states = named.pop("hidden_states")  # is doubled already
        return positional, {"hidden_states": hidden_states, **_twice(named)}

    with ExitStack() as stack:
        if location == "encoder":
            handle = unet.register_forward_pre_hook(double_inputs, with_kwargs=True)
            stack.callback(handle.remove)
        else:
            stack.callback(unet.mid_block.register_forward_hook(double_output).remove)
            for block in unet.up_blocks:
                handle = block.register_forward_pre_hook(double_context, with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(perturbed_features(unet, location, change_second_half))
        yield


def _twice(value: Any) -> Any:
    """Repeat the rows of tensors, also inside tuples and dicts; other values stay as they are."""
    if isinstance(value, Tensor):
        return torch.cat([value, value]) if value.ndim else value
    if isinstance(value, tuple):
        return tuple(_twice(item) for item in value)
    if isinstance(value, dict):
        return {name: _twice(item) for name, item in value.items()}
    return value
