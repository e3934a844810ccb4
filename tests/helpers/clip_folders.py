"""A tiny CLIP on disk, as Hugging Face saves one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from dreamda.finetune.from_scratch import build_tokenizer
from tests.helpers.noise_runs import CLASSES


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory) -> Path:
    """A random CLIP of 16 pixels whose predictions spread over the classes."""
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    names = [name.replace("_", " ") for name in CLASSES]
    tokenizer = build_tokenizer([f"a photo of a {name}." for name in names], 560)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2, "projection_dim": 8}
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    text = CLIPTextConfig(**size, **ids, vocab_size=len(tokenizer))
    vision = CLIPVisionConfig(**size, image_size=16, patch_size=8)
    torch.manual_seed(3)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
