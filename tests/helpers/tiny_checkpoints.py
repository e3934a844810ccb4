"""Checkpoints of random weights in kinds that the embedded one is not; its tokenizer and
autoencoder serve them too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from expansion.diffusion.samples import Batch
from tests.conftest import TINY_MODEL

PROMPTS = ["a photo of the digit one", "a photo of the digit two", "a three"]
WIDTHS, POOLED = (24, 40), 16  # of the two text encoders, and of the pooled embedding
SDXL_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def random_unet(**changes: Any) -> UNet2DConditionModel:
    """A U-Net for latents of 8 cells, of which every argument may be changed."""
    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return UNet2DConditionModel(**settings)


def tiny_sdxl(folder: Path) -> Path:
    """A Stable Diffusion XL in small: two text encoders, pooled embeddings, sizes of the image."""
    tokenizer = CLIPTokenizer.from_pretrained(TINY_MODEL / "tokenizer")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tokenizer), **ids}
    parts: dict[str, Any] = {
        "unet": random_unet(
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=POOLED + 6 * 8,
        ),
        "scheduler": EulerDiscreteScheduler(**SDXL_SCHEDULE, steps_offset=1),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        for name, network, width in zip(
            ("text_encoder", "text_encoder_2"),
            (CLIPTextModel, CLIPTextModelWithProjection),
            WIDTHS,
            strict=True,
        ):
            sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": POOLED}
            parts[name] = network(CLIPTextConfig(**small, **sizes))
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    shutil.copytree(TINY_MODEL / "vae", folder / "vae")
    change_json(folder / "vae" / "config.json", scaling_factor=0.13025, force_upcast=True)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": True,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    for name, part in parts.items():
        library = "diffusers" if name in ("unet", "scheduler") else "transformers"
        index[name] = [library, type(part).__name__]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Change values of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def changed_copy(source: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    """A copy of a checkpoint; `unet={...}` changes that part's config, `index` the index."""
    shutil.copytree(source, folder)
    for part, values in changes.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        change_json(
            folder / ("model_index.json" if part == "index" else f"{part}/{name}"), **values
        )
    return folder


def generators(count: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + i) for i in range(count)]


def make_batch() -> Batch:
    """Two real images of 32 pixels; the second has two variants."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    index, targets = torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3])
    return Batch(images, ("a", "b"), index, PROMPTS, targets, (7, 8))


def tiny_lcm(folder: Path) -> Path:
    """A latent consistency model in small: its U-Net takes the guidance scale as an input."""
    shutil.copytree(TINY_MODEL, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "unet")
    random_unet(time_cond_proj_dim=32).save_pretrained(folder / "unet")
    shutil.rmtree(folder / "scheduler")
    LCMScheduler(**SDXL_SCHEDULE).save_pretrained(folder / "scheduler")
    change_json(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    return folder
