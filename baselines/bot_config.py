"""Settings of BoT; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baselines.text2img_config import Text2ImgConfig
from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.prompts import preset_prompts


@dataclass(frozen=True, kw_only=True)
class BoTConfig(Text2ImgConfig):
    """BoT, "Diversity is definitely needed" (arXiv 2302.03298), with its released values.

    Prompts are those of `configs/prompts/bot.yaml` in turn, unless others are given. The released
    code draws one guidance scale for a whole run, this one for each image, as the paper says.
    """

    num_inference_steps: int = option(40, "DDIM steps of the whole schedule")
    guidance_scale: float = option(
        5.0, "largest guidance scale; each image draws a whole number from 1 to it"
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.guidance_scale >= 1 and self.guidance_scale == int(self.guidance_scale),
            f"guidance_scale {self.guidance_scale}: give a whole number from 1",
        )

    def class_prompts(self, class_name: str, prompt_name: str) -> Sequence[str]:
        return preset_prompts("bot", prompt_name)
