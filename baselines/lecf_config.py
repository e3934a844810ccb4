"""Settings of LECF; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baselines.text2img_config import Text2ImgConfig
from expansion.data.prompts import preset_prompts


@dataclass(frozen=True, kw_only=True)
class LECFConfig(Text2ImgConfig):
    """LECF, "Is synthetic data from generative models ready" (arXiv 2210.07574), by text-to-image.

    Its sentences about the class are those of `configs/prompts/lecf.yaml` in turn, unless others
    are given; `python -m dreamda.prompts --preset lecf --model` makes them as LECF does. Its CLIP
    filter comes afterwards, by `expansion.evaluate` and `expansion.filter`. The released code takes
    GLIDE in place of Stable Diffusion.
    """

    def class_prompts(self, class_name: str, prompt_name: str) -> Sequence[str]:
        return preset_prompts("lecf", prompt_name)
