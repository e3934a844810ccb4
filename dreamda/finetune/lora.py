"""Low-rank adapters (LoRA, arXiv 2106.09685) of the U-Net's attention, through peft.

A linear map W x becomes W x + (alpha / rank) B A x; only A and B are trained. B starts at zero.
peft is optional: nothing here is called without `--lora_rank`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers

from expansion.diffusion.stable_diffusion import DTYPES

TARGET_MODULES = ("to_k", "to_q", "to_v", "to_out.0")
FILE_NAME = "pytorch_lora_weights.safetensors"


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: float | None, seed: int) -> None:
    """Put trainable adapters into every attention layer of `unet`.

    Args:
        unet: Is changed in place.
        rank: Number of rows of A and of columns of B.
        alpha: Scales what the adapters add by alpha / rank; None means `rank`.
        seed: Decides the random A.
    """
    from peft import LoraConfig

    lora_alpha: Any = rank if alpha is None else alpha  # peft divides it by rank, whole or not
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=lora_alpha,
                target_modules=list(TARGET_MODULES),
            )
        )


def save_lora(unet: UNet2DConditionModel, folder: Path, dtype: str) -> None:
    """Write the adapters of `unet`, with rank and alpha, for `pipeline.load_lora_weights(folder)`.

    `dtype` is a key of `DTYPES`, the number format of the file.
    """
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={key: value.to(DTYPES[dtype]) for key, value in layers.items()},
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        weight_name=FILE_NAME,
    )


def fuse_lora(unet: UNet2DConditionModel) -> None:
    """Add the adapters to the weights, W + (alpha / rank) B A, and take them out of `unet`."""
    unet.fuse_lora()
    unet.unload_lora()
