"""Settings of DiffuseMix; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import InputError, require
from expansion.data.prompts import preset_prompts
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.images.content import readable_records
from expansion.images.file_trees import image_files
from expansion.images.records import ImageRecord

MIXES = ("paper", "released")


@dataclass(frozen=True, kw_only=True)
class DiffuseMixConfig(SamplerConfig):
    """Settings of DiffuseMix (Islam et al., CVPR 2024), with the values of paper and released code.

    Steps are DDIM's, where the released code takes Euler's ancestral ones. A variant takes one of
    the prompts in turn, from a drawn one on, where the released code makes an image of each.
    """

    num_inference_steps: int = option(100, "DDIM steps of the whole schedule")
    strength: float = option(1.0, "1: an edit starts from noise alone and runs the whole schedule")
    guidance_scale: float = option(
        4.0, "guidance towards the prompt; 1 or less: no guidance, not by the real image either"
    )
    image_guidance_scale: float = option(
        1.5, "guidance towards the real image, 1 or more; more keeps more of it"
    )
    mix_compat: str = option(
        "paper",
        "paper: a sharp half of four (left, right, top, bottom) stays real, prompts say that an "
        "image is transformed; released: left or top stays real, with a seam of 20 of 512 pixels, "
        "and prompts are bare",
        choices=MIXES,
    )
    fractals: str | None = option(
        None, "folder of images that are blended in; default: fractals of this project's making"
    )
    fractal_weight: float = option(0.2, "share of the fractal in an image, 0 to 1; 0: none")

    needs_image_unet: ClassVar[bool] = True
    guided_rows: ClassVar[int] = 3  # text and image, image alone, neither

    def __post_init__(self):
        super().__post_init__()
        require(
            self.strength == 1,
            f"strength {self.strength}: an edit starts from noise alone, so give 1; "
            "--image_guidance_scale says how much of the real image it keeps",
        )
        require(
            self.image_guidance_scale >= 1,
            f"image_guidance_scale {self.image_guidance_scale}: give 1 or more",
        )
        require(
            0 <= self.fractal_weight <= 1,
            f"fractal_weight {self.fractal_weight}: give a number from 0 to 1",
        )

    def class_prompts(self, class_name: str, prompt_name: str) -> Sequence[str]:
        preset = "diffusemix" if self.mix_compat == "paper" else "diffusemix_released"
        return preset_prompts(preset, prompt_name)

    def check_run(self) -> None:
        if self.fractals is None:
            return
        try:
            readable_records(fractal_records(self.fractals), "fail")
        except InputError as error:
            reason = str(error).partition(", or go on without it")[0]
            raise InputError(f"fractals {self.fractals}: {reason}") from error

    def input_folders(self) -> Mapping[str, str]:
        return {} if self.fractals is None else {"fractals": self.fractals}


def fractal_records(folder: str) -> list[ImageRecord]:
    """The images below a folder, in the order of their names.

    Raises:
        InputError: There is no such folder, or no image in it.
    """
    files = image_files(Path(folder))
    require(
        len(files) > 0,
        f"{folder} is no folder with images; give one, or leave out --fractals for fractals of "
        "this project's making",
    )
    return [ImageRecord(path, path.relative_to(folder).as_posix(), 0, "") for path in files]
