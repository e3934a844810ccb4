"""What a diffusion model is trained on: images as pixel values, and captions as token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from dreamda.finetune.config import FinetuneConfig
from expansion.data.batches import SeededImages
from expansion.data.prompts import class_prompt
from expansion.images.pixel_cache import PixelCache
from expansion.images.records import ImageRecord


def middle_square(side: int) -> v2.Compose:
    """Cut the middle `side` x `side` pixels of a resized PIL image; one of that size stays."""
    resize = v2.Resize(side, interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose([resize, v2.CenterCrop(side)])


def training_images(
    records: Sequence[ImageRecord], config: FinetuneConfig, resolution: int
) -> SeededImages:
    """Images with `training_transform`, each decoded only once as far as memory allows.

    Args:
        records: Real images.
        config: Augmentation.
        resolution: Side of the pixel values.
    """
    cache = PixelCache(resolution, middle_square(resolution))
    return SeededImages(records, training_transform(config, resolution), cache)


def training_transform(config: FinetuneConfig, resolution: int) -> v2.Compose:
    """Turn a PIL image into pixel values (3, H, W) in [-1, 1], augmented as `config` says.

    H and W are `resolution`.
    """
    zoom = (1 - config.affine_scale, 1 + config.affine_scale)
    shift = (config.affine_translate, config.affine_translate)
    steps: list[nn.Module] = [middle_square(resolution)]
    if config.random_flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.affine_degrees or config.affine_translate or config.affine_scale:
        steps.append(
            v2.RandomAffine(
                config.affine_degrees, shift, zoom, interpolation=v2.InterpolationMode.BILINEAR
            )
        )
    to_pixel_values = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.5]),
    ]
    return v2.Compose(steps + to_pixel_values)


class CaptionSource:
    """Token ids of a caption per image: a random template of its class, or the empty caption.

    Args:
        tokenizers: CLIP's, one for each text encoder, with windows of one length.
        templates: Captions in which {} stands for the class name.
        names: Class names by label.
        dropout: Share of empty captions, 0 to 1.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        templates: Sequence[str],
        names: Sequence[str],
        dropout: float,
    ):
        def tokens(text: str) -> Tensor:
            each = [
                tokenizer(
                    text,
                    padding="max_length",
                    truncation=True,
                    max_length=tokenizer.model_max_length,
                    return_tensors="pt",
                ).input_ids[0]
                for tokenizer in tokenizers
            ]
            return torch.stack(each)

        self.by_class = [[tokens(class_prompt(t, name)) for t in templates] for name in names]
        self.empty = tokens("")
        self.dropout = dropout

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw `count` numbers of templates by `seed`, (count,); -1 is the empty caption."""
        rng = random.Random(seed)
        templates = range(len(self.by_class[0]))
        return torch.tensor(
            [-1 if rng.random() < self.dropout else rng.choice(templates) for _ in range(count)]
        )

    def input_ids(self, labels: Tensor, templates: Tensor) -> Tensor:
        """Token ids (B, E, L), for E tokenizers, of `labels` (B,) and the `templates` of `draw`."""
        return torch.stack(
            [
                self.by_class[label][template] if template >= 0 else self.empty
                for label, template in zip(labels.tolist(), templates.tolist(), strict=True)
            ]
        )
