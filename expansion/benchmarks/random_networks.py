"""Networks of the published sizes with random weights, which change neither speed nor memory."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from expansion.common.config import PROJECT_ROOT
from expansion.diffusion.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Pipeline
from expansion.diffusion.stable_diffusion import DTYPES


def random_pipeline(
    family: str,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    dtype: str,
    device: str,
    image_unet: bool = False,
) -> Pipeline:
    """Stable Diffusion 1.x (1.07 billion parameters) or XL (3.5 billion) with random weights.

    Args:
        family: "sd1" or "sdxl".
        tokenizer: Any tokenizer with a vocabulary that is not larger than the text encoders'.
        scheduler: Gives the noise schedule.
        dtype: A key of `DTYPES`.
        device: Where the weights are made.
        image_unet: Whether the U-Net takes the latents of an image beside its own.
    """
    is_xl = family == "sdxl"
    with torch.device(device):
        parts = {
            "unet": _unet_xl() if is_xl else unet(image_unet),
            "vae": autoencoder(is_xl),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                )
            ),
        }
        if is_xl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=1280,
                    intermediate_size=5120,
                    num_hidden_layers=32,
                    num_attention_heads=20,
                    hidden_act="gelu",
                    projection_dim=1280,
                )
            )
    # Made ready as `load_pipeline` does it.
    for name, part in parts.items():
        part.to(DTYPES[dtype]).eval().requires_grad_(False)
        if device.startswith("cuda") and name in ("unet", "vae"):
            part.to(memory_format=torch.channels_last)
    if is_xl:
        return StableDiffusionXLPipeline(
            **parts,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=scheduler,
            **STABLE_DIFFUSION_XL.arguments,
        )
    return StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=scheduler, **STABLE_DIFFUSION.arguments
    )


def unet(image_unet: bool = False) -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion 1.x; `image_unet` as in `random_pipeline`."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=8 if image_unet else 4,
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def _unet_xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def autoencoder(is_xl: bool = False) -> AutoencoderKL:
    """The autoencoder of Stable Diffusion 1.x or XL."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=1024 if is_xl else 512,
        scaling_factor=0.13025 if is_xl else 0.18215,
        force_upcast=is_xl,
    )


def random_clip(folder: Path, full_size: bool) -> Path:
    """Save a CLIP with random weights for a method that scores images with one; returns its folder.

    Args:
        folder: Where it is saved.
        full_size: As large as ViT-B/32, for images of 224 pixels; else tiny, for 32.
    """
    tokenizer = CLIPTokenizer.from_pretrained(PROJECT_ROOT / "assets/tiny-sd-digits/tokenizer")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tiny = {} if full_size else {**tiny, "num_attention_heads": 2}
    side = 224 if full_size else 32
    text = CLIPTextConfig(vocab_size=len(tokenizer), **ids, **tiny)
    vision = CLIPVisionConfig(image_size=side, patch_size=32 if full_size else 8, **tiny)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    for part in (tokenizer, processor):
        part.save_pretrained(folder)
    return folder
