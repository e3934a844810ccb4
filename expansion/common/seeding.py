"""Random numbers that depend on what is computed, never on when or by whom."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; equal parts give equal seeds on every machine."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(text).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # fits a signed 64-bit generator seed


def image_seed(run_seed: int, file_name: str, variant: int) -> int:
    """Seed of one generated image.

    The method and its settings are left out on purpose: two methods, or two settings of one, see
    the same noise for the same image and variant, so that their results are paired.

    Args:
        run_seed: `--seed` of the run.
        file_name: Path of the real image relative to the dataset folder, with "/".
        variant: Number of the variant, from 0.
    """
    return stable_seed("image", run_seed, file_name, variant)


def image_generator(run_seed: int, file_name: str, variant: int) -> torch.Generator:
    """CPU generator of one generated image, see `image_seed`."""
    import torch

    return torch.Generator("cpu").manual_seed(image_seed(run_seed, file_name, variant))
