"""Families of checkpoints: what their folders hold, and how diffusers loads them.

A sampler does not ask which family it runs on: what a U-Net is told beside latents and timestep is
one `Conditioning`, which `PromptEncoder` makes. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from expansion.common.errors import require

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

# A loaded checkpoint of any family.
Pipeline: TypeAlias = "StableDiffusionPipeline | StableDiffusionXLPipeline"


@dataclass(frozen=True)
class Family:
    """A family of checkpoints with the same parts.

    Attributes:
        title: What messages call it.
        pipeline_class: Name of diffusers' text-to-image pipeline.
        classes: Part -> (library, pattern of the classes) that are loaded; a model_index.json that
            names others is refused.
        text_encoders: The parts that make prompt embeddings, in the order in which the U-Net takes
            their outputs.
        tokenizers: One for each of them.
        arguments: What the pipeline's constructor takes beside the parts.
        decodes_in_float32: Whether the autoencoder needs float32 where the other networks have
            float16, unless its config says that it does not (`force_upcast`).
    """

    title: str
    pipeline_class: str
    classes: Mapping[str, tuple[str, str]]
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    decodes_in_float32: bool = False

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts that have weights."""
        return (*self.text_encoders, "unet", "vae")

    @property
    def components(self) -> tuple[str, ...]:
        """All parts, which are folders of a checkpoint, sorted."""
        return tuple(sorted(self.classes))


COMMON_CLASSES = {
    "scheduler": ("diffusers", r"\w+Scheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer(Fast)?"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
STABLE_DIFFUSION = Family(
    title="Stable Diffusion 1.x or 2.x",
    pipeline_class="StableDiffusionPipeline",
    classes=COMMON_CLASSES,
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    arguments={
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
)
STABLE_DIFFUSION_XL = Family(
    title="Stable Diffusion XL",
    pipeline_class="StableDiffusionXLPipeline",
    classes={
        **COMMON_CLASSES,
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "tokenizer_2": ("transformers", "CLIPTokenizer(Fast)?"),
    },
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    arguments={"feature_extractor": None, "image_encoder": None, "add_watermarker": False},
    decodes_in_float32=True,
)


def family_of_index(index: Mapping[str, Any]) -> Family:
    """The family of a checkpoint, by the content of its model_index.json."""
    named = str(index.get("_class_name"))
    is_xl = named.startswith("StableDiffusionXL") or "text_encoder_2" in index
    return STABLE_DIFFUSION_XL if is_xl else STABLE_DIFFUSION


def family_of(pipeline: Pipeline) -> Family:
    """The family of a loaded checkpoint."""
    is_xl = getattr(pipeline, "text_encoder_2", None) is not None
    return STABLE_DIFFUSION_XL if is_xl else STABLE_DIFFUSION


def require_one_text_encoder(family: Family, what: str) -> None:
    """Raise InputError for a family with several text encoders.

    Args:
        family: Of the checkpoint.
        what: Names what needs that there is only one, as the subject of the message.
    """
    require(
        len(family.text_encoders) == 1,
        f"{what} is for checkpoints with one text encoder, {family.title} has "
        f"{len(family.text_encoders)}; give one of {STABLE_DIFFUSION.title}",
    )


def text_encoders(pipeline: Pipeline) -> list[Any]:
    """The networks that make prompt embeddings, in the order in which the U-Net takes them."""
    return [getattr(pipeline, name) for name in family_of(pipeline).text_encoders]
