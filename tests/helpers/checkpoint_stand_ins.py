"""Checkpoints in other forms than a plain diffusers folder, made of the tiny one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import TINY_MODEL

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def copy_model(folder: Path, **changes: dict[str, Any]) -> Path:
    """A copy of the tiny checkpoint; `unet={...}` changes values of that part's config."""
    shutil.copytree(TINY_MODEL, folder, ignore=shutil.ignore_patterns("*.md", "*.png"))
    for part, values in changes.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = folder / "model_index.json" if part == "index" else folder / part / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def editing_model(folder: Path) -> Path:
    """The tiny checkpoint in the form of InstructPix2Pix: its U-Net also takes an image's latents.

    Their weights are random, so that they matter.
    """
    copy_model(folder, unet={"in_channels": 8})
    copy = folder / "model_index.json"
    index = {
        **json.loads(copy.read_text()),
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
    }
    copy.write_text(json.dumps({**index, "image_encoder": [None, None]}))
    path = next((folder / "unet").glob("*.safetensors"))
    state = load_file(path)
    own = state["conv_in.weight"]
    further = torch.randn(own.shape, generator=torch.Generator().manual_seed(3)) * 0.02
    state["conv_in.weight"] = torch.cat([own, further.to(own)], dim=1)
    save_file(state, path, {"format": "pt"})
    return folder


def as_variant(folder: Path, part: str, variant: str) -> None:
    """Rename a component's weights to those of a variant."""
    path = next((folder / part).glob("*.safetensors"))
    path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))


def in_shards(folder: Path, part: str, names: tuple[str, str], index: str) -> None:
    """Spread a component's weights over two files and an index."""
    path = next((folder / part).glob("*.safetensors"))
    state, places = load_file(path), {}
    path.unlink()
    for name, keys in zip(names, (sorted(state)[::2], sorted(state)[1::2]), strict=True):
        save_file({key: state[key] for key in keys}, path.with_name(name), {"format": "pt"})
        places |= dict.fromkeys(keys, name)
    path.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def single_file_state(model: Path = TINY_MODEL) -> dict[str, Tensor]:
    """The weights under the names of the original Stable Diffusion code."""
    unet, vae = (
        load_file(model / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae")
    )
    text = load_file(model / "text_encoder" / "model.safetensors")
    state = {f"model.diffusion_model.{_unet_name(key)}": value for key, value in unet.items()}
    for key, value in vae.items():
        name = _vae_name(key)
        if ".attn_1." in name and name.endswith("weight") and value.dim() == 2:
            value = value[:, :, None, None]
        state[f"first_stage_model.{name}"] = value
    for key, value in text.items():
        name = key.removeprefix("text_model.")
        state[f"cond_stage_model.transformer.text_model.{name}"] = value
    return {key: value.contiguous() for key, value in state.items()}


def save_single_file(path: Path, state: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    return path


def _renamed(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    return key


def _unet_name(key: str) -> str:
    """The original name; this U-Net has one residual layer per level, so n + 1 blocks of each."""
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    if match:
        side, block, kind, layer, rest = match.groups()
        first = 2 * int(block)
        if kind == "downsamplers":
            return f"input_blocks.{first + 2}.0.op{rest.removeprefix('conv')}"
        if kind == "upsamplers":  # this level has no attention
            return f"output_blocks.{first + 1}.1.{rest}"
        place = f"input_blocks.{first + 1 + int(layer)}" if side == "down" else ""
        place = place or f"output_blocks.{first + int(layer)}"
        return f"{place}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"
    match = re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", key)
    if match:
        kind, layer, rest = match.groups()
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(layer)}.{_renamed(rest, RESNET)}"
    return _renamed(key, OUTER)


def _vae_name(key: str) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    match = re.match(r"(.*)mid_block\.attentions\.0\.(.*)", key)
    if match:
        return f"{match[1]}mid.attn_1.{_renamed(match[2], ATTENTION)}"
    key = re.sub(r"down_blocks\.(\d)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{2 - int(m[1])}", key)
    key = key.replace(".resnets.", ".block.").replace("downsamplers.0", "downsample")
    return key.replace("upsamplers.0", "upsample")
