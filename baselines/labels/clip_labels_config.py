"""Settings of CLIP's labels; imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.prompts import class_prompt


@dataclass(frozen=True, kw_only=True)
class ClipLabelsConfig:
    """Zero-shot labels of generated images. DreamDA's paper names neither model nor text."""

    clip_model: str = option(
        "openai/clip-vit-base-patch32", "CLIP that labels the images: hub id or local folder"
    )
    clip_revision: str | None = option(None, "branch, tag or commit of --clip_model on the hub")
    clip_templates: tuple[str, ...] = option(
        ("a photo of a {}.",), "texts that stand for a class, averaged; {} becomes its name"
    )

    def __post_init__(self):
        require(bool(self.clip_templates), "clip_templates is empty; give a text with {} in it")
        for template in self.clip_templates:
            class_prompt(template, "")
