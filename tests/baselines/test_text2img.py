"""Text-to-image and BoT: equal to diffusers' pipeline, and blind to the real images."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import expand
from baselines.bot import BoTSampler
from baselines.bot_config import BoTConfig
from baselines.text2img import Text2ImgSampler
from baselines.text2img_config import Text2ImgConfig
from expansion.common.errors import InputError
from expansion.diffusion.samples import Batch

PROMPTS = ["a photo of the digit one", "a two", "a three", "a photo of the digit one"]


def make_batch(rows: slice = slice(None), images: torch.Tensor | None = None) -> Batch:
    """Two real images with two variants each, or some rows of it."""
    index = torch.tensor([0, 0, 1, 1])[rows]
    images = torch.zeros(2, 3, 32, 32) if images is None else images
    return Batch(images, ("a", "b"), index, PROMPTS[rows], torch.tensor([1, 2, 3, 1])[rows], (7, 8))


def generators(rows: slice = slice(None)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(70 + i) for i in range(4)][rows]


def reference(pipeline, prompts, drawn, steps: int, guidance_scale: float) -> torch.Tensor:
    """Images of diffusers' own pipeline."""
    parts = {
        **pipeline.components,
        "scheduler": DDIMScheduler.from_config(pipeline.scheduler.config),
    }
    theirs = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs(
        prompt=prompts,
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=[""] * len(prompts),
        generator=drawn,
        output_type="pt",
    ).images


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_text_to_image_equals_the_pipeline_of_diffusers(pipeline, calls_of, guidance_scale):
    config = Text2ImgConfig(num_inference_steps=6, guidance_scale=guidance_scale)
    rows = calls_of(pipeline.unet)
    ours = Text2ImgSampler(pipeline, config).sample(make_batch(), generators()).images
    assert sum(rows) == 4 * config.unet_rows_per_image(2)
    theirs = reference(pipeline, PROMPTS, generators(), 6, guidance_scale)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler_class, config", [
    (Text2ImgSampler, Text2ImgConfig(num_inference_steps=3)),
    (BoTSampler, BoTConfig(num_inference_steps=3)),
])  # fmt: skip
def test_an_image_depends_neither_on_real_pixels_nor_on_its_neighbours(
    pipeline, sampler_class, config
):
    sampler = sampler_class(pipeline, config)
    together = sampler.sample(make_batch(), generators()).images
    others = torch.rand(2, 3, 32, 32)
    assert torch.equal(sampler.sample(make_batch(images=others), generators()).images, together)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = sampler.sample(make_batch(rows), generators(rows)).images
        torch.testing.assert_close(alone, together[rows], atol=1e-4, rtol=0)


def test_bot_runs_each_image_at_its_own_guidance_scale(pipeline):
    config = BoTConfig(num_inference_steps=4)
    samples = BoTSampler(pipeline, config).sample(make_batch(), generators())
    scales = samples.details["guidance_scale"].tolist()
    assert len(set(scales)) > 1
    for row, scale in enumerate(scales):
        drawn = generators(slice(row, row + 1))
        theirs = reference(pipeline, PROMPTS[row : row + 1], drawn, 4, scale)
        torch.testing.assert_close(samples.images[row : row + 1], theirs, atol=1e-4, rtol=0)


def test_bot_draws_every_whole_number_up_to_its_guidance_scale(pipeline):
    sampler = BoTSampler(pipeline, BoTConfig(num_inference_steps=1))
    sampler.denoiser.run = lambda latents, *_, **__: (latents, [])
    index = torch.zeros(200, dtype=torch.long)
    batch = Batch(torch.zeros(1, 3, 32, 32), ("a",), index, ["a two"] * 200, index, (7,))
    drawn = [torch.Generator().manual_seed(i) for i in range(200)]
    counts = Counter(sampler.sample(batch, drawn).details["guidance_scale"].tolist())
    assert set(counts) == {1, 2, 3, 4, 5} and min(counts.values()) > 20


def expanded(digits_dir, folder, method: str, *options: object) -> list[dict]:
    line = f"-d digits --data_dir {digits_dir} --method {method} --shots 2 --device cpu"
    line += f" --num_inference_steps 2 --output_dir {folder}"
    assert not expand.main([*line.split(), *map(str, options)])
    return [json.loads(row) for row in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_third_of_bot_s_prompts_is_of_each_kind(digits_dir, tmp_path):
    rows = expanded(digits_dir, tmp_path, "bot", "--num_images_per_prompt", 6)
    names = "zero one two three four five six seven eight nine".split()
    kinds = Counter()
    for row in rows:
        name = names[row["label"]]
        plain = {name: "class", f"an image of a {name}": "base"}
        kinds[plain.get(row["prompt"], "domain")] += 1
        assert row["prompt"].endswith(name)
    assert kinds == {"class": 40, "base": 40, "domain": 40}
    assert len({row["prompt"] for row in rows if row["label"] == 3}) > 4


def test_a_template_takes_the_place_of_bot_s_prompts(digits_dir, tmp_path):
    rows = expanded(digits_dir, tmp_path, "bot", "--prompt_template", "a {}", "--shots", 1)
    assert {row["prompt"].split()[0] for row in rows} == {"a"}


def test_shards_and_batches_of_text_to_image_make_the_same_images(digits_dir, tmp_path):
    whole = expanded(digits_dir, tmp_path / "whole", "text2img", "--batch_size", 8)
    for split in (1, 0):
        shard = ("--batch_size", 8, "--split", split, "--total_split", 2)
        parts = expanded(digits_dir, tmp_path / "parts", "text2img", *shard)
    assert parts == whole
    for row in whole:
        files = [tmp_path / part / row["file_name"] for part in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "config_class, options, message",
    [
        (Text2ImgConfig, {"strength": 0.5}, "strength 0.5: .*--method img2img"),
        (BoTConfig, {"resize_mode": "squash"}, "resize_mode squash: .*does not look at real"),
        (BoTConfig, {"guidance_scale": 0.5}, "guidance_scale 0.5: give a whole number"),
        (BoTConfig, {"guidance_scale": 2.7}, "guidance_scale 2.7: give a whole number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config_class, options, message):
    with pytest.raises(InputError, match=message):
        config_class(**options)
