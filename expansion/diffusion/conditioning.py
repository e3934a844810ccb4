"""What a U-Net is told beside latents and timestep, for every family of checkpoints alike.

Stable Diffusion 1.x and 2.x take prompt embeddings. Stable Diffusion XL (arXiv 2307.01952) also
takes a pooled embedding of the prompt and six numbers about the image: its original size, where it
was cropped, and its size (sec. 2.2 there). Distilled models may take the guidance scale as well.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from expansion.common.phases import phase
from expansion.diffusion.families import STABLE_DIFFUSION_XL, Pipeline, family_of, text_encoders


@dataclass(frozen=True)
class Conditioning:
    """R rows of conditions, one for each row of latents.

    Attributes:
        prompt_embeds: (R, L, D); L is the tokenizer's window, D the width that the U-Net attends.
        added: What SDXL takes beside them, by name: `text_embeds`, (R, P), the pooled embedding,
            and `time_ids`, (R, 6), the sizes. Empty for Stable Diffusion 1.x and 2.x.
        timestep_cond: Embedding of the guidance scale, (R, E), for a U-Net that was distilled to
            take it (`time_cond_proj_dim`).
    """

    prompt_embeds: Tensor
    added: Mapping[str, Tensor] = field(default_factory=dict)
    timestep_cond: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, rows: Any) -> Conditioning:
        """Some of the rows: a slice, or a tensor of their numbers."""
        return self.map(lambda tensor: tensor[rows])

    @property
    def unet_inputs(self) -> dict[str, Any]:
        """The named arguments of a call of the U-Net."""
        inputs: dict[str, Any] = {"encoder_hidden_states": self.prompt_embeds}
        if self.added:
            inputs["added_cond_kwargs"] = dict(self.added)
        if self.timestep_cond is not None:
            inputs["timestep_cond"] = self.timestep_cond
        return inputs

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same conditions with every tensor changed, their rows alike."""
        return Conditioning(
            change(self.prompt_embeds),
            {name: change(tensor) for name, tensor in self.added.items()},
            None if self.timestep_cond is None else change(self.timestep_cond),
        )

    def guided_by(self, guidance_scale: Tensor, unet: UNet2DConditionModel) -> Conditioning:
        """The same conditions and the guidance scale of each row, if the U-Net takes it.

        Args:
            guidance_scale: g, (R,); what is below 1 counts as 1, no guidance.
            unet: Says how wide the embedding is, if it takes one.
        """
        if not embeds_guidance(unet):
            return self
        embedding = guidance_embedding(guidance_scale.clamp(min=1), unet.config.time_cond_proj_dim)
        embedding = embedding.to(self.prompt_embeds.device, self.prompt_embeds.dtype)
        return dataclasses.replace(self, timestep_cond=embedding)

    def of_images(self, images: Tensor, count: int) -> Conditioning:
        """The rows of some images, where every image has a row in each of R / `count` parts.

        Args:
            images: Their numbers, (B',).
            count: B, the number of all images.
        """
        return self.map(lambda t: t.unflatten(0, (-1, count))[:, images].flatten(0, 1))

    def repeat_interleave(self, repeats: int) -> Conditioning:
        """Every row `repeats` times, one after the other."""
        return self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, of one family, one after the other."""
        added = {name: torch.cat([p.added[name] for p in parts]) for name in parts[0].added}
        scales = [p.timestep_cond for p in parts]
        timestep_cond = None if scales[0] is None else torch.cat(scales)
        return Conditioning(torch.cat([p.prompt_embeds for p in parts]), added, timestep_cond)


def embeds_guidance(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net takes the guidance scale as an input, and so is not guided beside that."""
    return unet.config.get("time_cond_proj_dim") is not None


def guidance_embedding(guidance_scale: Tensor, width: int) -> Tensor:
    """The sinusoidal embedding of 1000 (g - 1), sines before cosines: (R, `width`), float32.

    Frequencies fall from 1 to 1e-4, as in latent consistency models (arXiv 2310.04378).

    Args:
        guidance_scale: g, (R,); 1 is no guidance.
        width: Numbers of the embedding; the last one of an odd number is 0.
    """
    half = width // 2
    places = torch.arange(half, dtype=torch.float32)
    frequencies = torch.exp(-places * (math.log(10_000) / (half - 1)))
    angles = 1000 * (guidance_scale.float().cpu() - 1)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class PromptEncoder:
    """Makes conditions of prompts, each text by itself and only once.

    Where a checkpoint was trained with zeros in place of the empty text
    (`force_zeros_for_empty_prompt`, as SDXL's base), the empty text is zeros.

    Args:
        pipeline: Gives tokenizers and text encoders.
        max_texts: Number of texts whose embeddings are kept in memory.
    """

    def __init__(self, pipeline: Pipeline, max_texts: int = 2048):
        self.pipeline = pipeline
        self.family = family_of(pipeline)
        self.embed = functools.lru_cache(max_texts)(self._embed)

    def __call__(
        self,
        prompts: Sequence[str],
        negative_prompt: str | None,
        size: tuple[int, int] | None = None,
        guidance_scale: float = 1.0,
    ) -> Conditioning:
        """Embed B prompts, in the text encoders' number format.

        Args:
            prompts: B texts.
            negative_prompt: If it is given, B rows of it come first, 2B in all.
            size: Height and width of the images, pixels; default: the checkpoint's own.
            guidance_scale: For a U-Net that takes it as an input; then there is no negative prompt.
        """
        unet = self.pipeline.unet
        if embeds_guidance(unet):
            negative_prompt = None
        negative = [] if negative_prompt is None else [negative_prompt] * len(prompts)
        dtype = text_encoders(self.pipeline)[-1].dtype
        embedded = [self.embed(text, dtype) for text in (*negative, *prompts)]
        prompt_embeds = torch.stack([embeds for embeds, _ in embedded])
        added = {}
        if self.family is STABLE_DIFFUSION_XL:
            pooled = torch.stack([pooled for _, pooled in embedded])
            added = added_conditions(self.pipeline, pooled, size)
        scales = torch.full((len(embedded),), float(guidance_scale))
        return Conditioning(prompt_embeds, added).guided_by(scales, unet)

    def _embed(self, text: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The embedding of a text, (L, D), and with SDXL the pooled one, (P,)."""
        with phase("encode"):
            found = self.pipeline.encode_prompt(
                text,
                device=self.pipeline.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        embeds = found[0][0].to(dtype)
        if self.family is not STABLE_DIFFUSION_XL:
            return embeds, None
        pooled = found[2][0].to(dtype)
        if empty_is_zero(self.pipeline) and not text:
            return torch.zeros_like(embeds), torch.zeros_like(pooled)
        return embeds, pooled


def empty_is_zero(pipeline: Pipeline) -> bool:
    """Whether the checkpoint takes zeros in place of the empty text's embeddings."""
    return bool(pipeline.config.get("force_zeros_for_empty_prompt", False))


def added_conditions(
    pipeline: Pipeline, pooled: Tensor, size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """What SDXL is told beside prompt embeddings, as diffusers' img2img pipeline has it.

    The images count as never resized nor cropped.

    Args:
        pipeline: The checkpoint.
        pooled: Pooled embeddings of the prompts, (R, P).
        size: Height and width of the images, pixels; default: the checkpoint's own.
    """
    if size is None:
        size = (pipeline.unet.config.sample_size * pipeline.vae_scale_factor,) * 2
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}


def encode_tokens(
    pipeline: Pipeline,
    encoders: Sequence[Any],
    input_ids: Tensor,
    is_empty: Tensor,
    size: tuple[int, int],
) -> Conditioning:
    """Conditions of token ids, differentiable in the text encoders' weights.

    Args:
        pipeline: The checkpoint.
        encoders: Its text encoders, perhaps wrapped for several processes.
        input_ids: (B, E, L), for each of the E text encoders.
        is_empty: (B,), whether the text is the empty one.
        size: Height and width of the images, pixels.
    """
    if family_of(pipeline) is not STABLE_DIFFUSION_XL:
        return Conditioning(encoders[0](input_ids[:, 0])[0])
    # The outputs before the last layer, and the pooled one of the last text encoder.
    outputs = [
        encoder(input_ids[:, i], output_hidden_states=True) for i, encoder in enumerate(encoders)
    ]
    prompt_embeds = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = outputs[-1].text_embeds
    if empty_is_zero(pipeline):
        prompt_embeds = prompt_embeds * ~is_empty[:, None, None]
        pooled = pooled * ~is_empty[:, None]
    return Conditioning(prompt_embeds, added_conditions(pipeline, pooled, size))
