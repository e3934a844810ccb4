"""The toy method of CONTRIBUTING.md: variants that are mixed with their real image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

import expand
from expansion.common.config import option
from expansion.common.errors import InputError, require
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples

# blend/__init__.py: the settings. It imports no torch, so that --help and --dry_run are quick.


@dataclass(frozen=True, kw_only=True)
class BlendConfig(SamplerConfig):
    """Settings of the method."""

    share: float = option(0.2, "share of the real image in each of its variants, 0 to 1")

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.share <= 1, f"share {self.share}: give a number from 0 to 1")


# blend/sampler.py: the method. All randomness comes from the generators, one for each variant.


class BlendSampler(Img2ImgSampler):
    """img2img, whose variants are mixed with the real image that they come from."""

    config: BlendConfig

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        variants = super().sample(batch, generators).images
        real = batch.images[batch.source_index].to(variants)
        mixed = torch.lerp(variants, real, self.config.share)
        # Figures about each image go into its line of the manifest.
        return Samples(mixed, {"moved": (mixed - real).abs().mean(dim=(1, 2, 3))})


# expand.py: a line in SAMPLERS, ("blend:BlendConfig", "blend.sampler:BlendSampler").


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    line = (f"{__name__}:BlendConfig", f"{__name__}:BlendSampler")
    monkeypatch.setitem(expand.SAMPLERS, "blend", line)


def expanded(digits_dir, folder, *options: object) -> list[dict]:
    """Rows of a set of one variant for each of ten real digits."""
    line = f"-d digits --data_dir {digits_dir} --method blend --shots 1 --num_images_per_prompt 1"
    line += f" --num_inference_steps 2 --device cpu --output_dir {folder}"
    assert not expand.main([*line.split(), *map(str, options)])
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_method_makes_images_with_its_own_option(digits_dir, tmp_path):
    rows = expanded(digits_dir, tmp_path, "--share", 1)
    assert len(rows) == 10 and {row["method"] for row in rows} == {"blend"}
    for row in rows:
        real = Image.open(digits_dir / "digits" / row["source"]).convert("RGB")
        made = Image.open(tmp_path / row["file_name"])
        assert row["details"]["moved"] == 0 and np.array_equal(np.asarray(made), np.asarray(real))


def test_the_option_is_shown_and_checked(capsys):
    with pytest.raises(SystemExit):
        expand.main(["--method", "blend", "--help", "all"])
    assert "--share" in capsys.readouterr().out
    with pytest.raises(InputError, match="share 2.0: give a number from 0 to 1"):
        expand.main(["-d", "digits", "--method", "blend", "--share", "2"])
