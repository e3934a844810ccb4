"""CLIP's image tower as a backbone, on the same normalised images as every other one.

transformers loads slowly and is imported only where a tower is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from expansion.classifier.clip_files import cannot_load
from expansion.classifier.transforms import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
GEOMETRY = (  # fields of the config that decide what the weights compute
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "projection_dim",
    "hidden_act",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class Tower:
    """Where pretrained weights are, and what differs from transformers' default, ViT-B/32."""

    hub_id: str
    fields: dict[str, Any] = field(default_factory=dict)


TOWERS = {
    "clip_vit_b32": Tower("openai/clip-vit-base-patch32"),
    # OpenCLIP's, by DistDiff's name: as LAION trained it, with the exact GELU.
    "open_clip_vit_b32": Tower("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"hidden_act": "gelu"}),
}


class ClipVision(nn.Module):
    """Projected, pooled features (B, D), not of unit length, of normalised images (B, 3, H, W).

    ImageNet's normalisation is turned into CLIP's: z = x scale + shift. Positions are interpolated
    where the images are not of the tower's own size; the side is at least one patch.

    Args:
        tower: Image model with its projection.
    """

    def __init__(self, tower: CLIPVisionModelWithProjection):
        super().__init__()
        self.tower = tower
        self.num_features: int = tower.config.projection_dim
        scale, shift = normalization_change()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        own = (self.tower.config.image_size,) * 2
        resized = pixels.shape[-2:] != own
        pixel_values = pixels * self.scale + self.shift
        return self.tower(pixel_values, interpolate_pos_encoding=resized).image_embeds


def normalization_change() -> tuple[Tensor, Tensor]:
    """Scale and shift (3, 1, 1) from ImageNet's normalisation of an image to CLIP's."""
    mean, std, clip_mean, clip_std = (
        torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD)
    )
    return std / clip_std, (mean - clip_mean) / clip_std


def build_tower(arch: str) -> ClipVision:
    """An untrained tower of `TOWERS`."""
    from transformers import CLIPVisionModelWithProjection

    return ClipVision(CLIPVisionModelWithProjection(_config(arch)))


def load_tower(arch: str, name_or_path: str | None) -> ClipVision:
    """A pretrained tower, from safetensors only.

    Args:
        arch: Key of `TOWERS`, whose shape the model must have.
        name_or_path: Hub id or local folder of a CLIP in transformers' format; None: the usual one.

    Raises:
        InputError: It cannot be loaded, is incomplete or is another network.
    """
    from transformers import CLIPVisionModelWithProjection

    from expansion.common.hub import only_cached, why_not_loaded
    from expansion.common.quiet import quiet_libraries

    name = name_or_path or TOWERS[arch].hub_id
    try:
        with quiet_libraries():
            tower, found = CLIPVisionModelWithProjection.from_pretrained(
                name,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                local_files_only=only_cached(name),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise cannot_load(name, why_not_loaded(name, error)) from error
    if found["missing_keys"]:
        raise cannot_load(name, f"it lacks {min(found['missing_keys'])}")
    wanted = _config(arch)
    for key in GEOMETRY:
        value, own = getattr(tower.config, key), getattr(wanted, key)
        if value != own:
            raise cannot_load(name, f"it is no {arch}, {key} {value} instead of {own}")
    return ClipVision(tower)


def _config(arch: str) -> CLIPVisionConfig:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**TOWERS[arch].fields)
