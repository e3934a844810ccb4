"""Low-rank adapters (LoRA, arXiv 2106.09685) for a loaded pipeline, added to its weights.

W becomes W + scale (alpha / rank) B A. Each layer has its own alpha and rank; without an alpha it
is the rank. This needs peft, which is looked for before weights load.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from expansion.common.errors import InputError, require
from expansion.diffusion.families import text_encoders
from expansion.diffusion.model_files import text_width
from expansion.diffusion.weight_files import (
    find_lora,
    lora_text_width,
    num_lora_layers,
    safetensors_header,
)

if TYPE_CHECKING:
    from torch import nn

    from expansion.diffusion.families import Pipeline


TEXT_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}


def check_lora(name: str, model: str) -> None:
    """Raise InputError if `--lora` names no adapter, or one that the checkpoint holds already.

    Args:
        name: Folder or file of the adapter.
        model: The checkpoint that it is added to.
    """
    path = find_lora(name)
    require(
        not path.resolve().is_relative_to(Path(model).resolve()),
        f"--lora {name} lies in the checkpoint {model}, to whose weights it was added already; "
        "leave --lora out, or give the checkpoint that it was trained on",
    )
    made_for, taken = lora_text_width(safetensors_header(path)), text_width(model)
    require(
        None in (made_for, taken) or made_for == taken,
        f"--lora {name} is for {_kind(made_for)}, the checkpoint {model} is {_kind(taken)}; give "
        "one that was trained on this checkpoint or its base",
    )
    require(
        importlib.util.find_spec("peft") is not None,
        f"--lora {name} needs the package peft: pip install peft",
    )


def _kind(text_width: int) -> str:
    """A kind of checkpoints, known by the width of the texts that its U-Net looks at."""
    return f"{TEXT_WIDTHS.get(text_width, 'a U-Net')} (texts of width {text_width})"


def add_lora(pipeline: Pipeline, name: str, scale: float) -> None:
    """Add an adapter to the weights of U-Net and text encoders.

    Args:
        pipeline: Its networks are changed in place.
        name: Folder or file of the adapter.
        scale: Factor on what the adapter adds.

    Raises:
        InputError: The adapter was made for other networks.
    """
    from expansion.common.quiet import quiet_libraries

    networks = [pipeline.unet, *text_encoders(pipeline)]
    path = find_lora(name)
    wanted = num_lora_layers(safetensors_header(path))
    try:
        with quiet_libraries():
            _load(pipeline, path)
            if not _names_scales(path):
                _scale_by_one(networks)
            # Layers that fit no network are passed over in silence, so count those that fit.
            fitting = sum(
                ".lora_A." in key for part in networks for key, _ in part.named_parameters()
            )
            if fitting == wanted:
                pipeline.fuse_lora(lora_scale=scale)
            pipeline.unload_lora_weights()
    except Exception as error:  # layers of another network make diffusers and peft fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"cannot add --lora {name}: {reason}; give one that was trained on this checkpoint"
        ) from error
    require(
        fitting == wanted,
        f"cannot add --lora {name}: of its {wanted} layers {fitting} fit this checkpoint; give one "
        "that was trained on it",
    )
    for part in networks:
        part.requires_grad_(False)


def _load(pipeline: Pipeline, path: Path) -> None:
    """Load an adapter beside the weights.

    An alpha of each layer, as in kohya's files, becomes part of its second factor: diffusers hands
    those that differ from most on under names that peft does not find, so that the most frequent
    one would count.
    """
    from safetensors.torch import load_file

    state = load_file(path)
    alphas = [name for name in state if name.endswith(".alpha")]
    if not alphas:  # from the file, which may name the scales
        pipeline.load_lora_weights(
            str(path.parent), weight_name=path.name, use_safetensors=True, local_files_only=True
        )
        return
    for name in alphas:
        layer = name.removesuffix(".alpha")
        down, up = (f"{layer}.lora_{factor}.weight" for factor in ("down", "up"))
        require({down, up} <= set(state), f"{name} belongs to no layer")
        state[up] = state[up].float() * (float(state.pop(name)) / len(state[down]))
    pipeline.load_lora_weights(state)


def _names_scales(path: Path) -> bool:
    """Whether the file says alpha and rank of its layers beside them, as newer diffusers write."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return LORA_ADAPTER_METADATA_KEY in (file.metadata() or {})


def _scale_by_one(networks: Iterable[nn.Module]) -> None:
    """Let each layer add the product of its two factors as it is."""
    for network in networks:
        for module in network.modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict):
                scaling.update(dict.fromkeys(scaling, 1.0))
