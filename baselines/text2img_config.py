"""Settings of text-to-image; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require
from expansion.diffusion.sampler_config import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class Text2ImgConfig(SamplerConfig):
    """Text-to-image: the row "SD" of DreamDA's tables. A real image gives its label alone."""

    strength: float = option(1.0, "1: the whole schedule is run, from noise alone")

    def __post_init__(self):
        super().__post_init__()
        require(
            self.strength == 1,
            f"strength {self.strength}: text-to-image starts from noise alone; give --method "
            "img2img for less than 1",
        )
        require(
            self.resize_mode == type(self).resize_mode,
            f"resize_mode {self.resize_mode}: text-to-image does not look at real images; leave it "
            "out",
        )
