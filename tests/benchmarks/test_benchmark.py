"""The benchmark of expansion measures what it says, on a tiny run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from expansion.benchmarks import sampling as benchmark
from expansion.benchmarks.random_networks import random_pipeline
from expansion.benchmarks.sampling_arms import (
    counted_rows,
    matrix_rate,
    some_variants,
    unet_flops,
)
from expansion.common.errors import InputError
from expansion.images.records import ImageRecord
from expansion.images.variants import Variant
from tests.helpers.checkpoint_stand_ins import editing_model

pytestmark = pytest.mark.slow  # whole benchmarks


@pytest.fixture(scope="module")
def figures(digits_dir, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("benchmark") / "figures.json"
    line = f"--data_dir {digits_dir} --batch_sizes 2 --num_images_per_prompt 2 --rounds 1"
    line += f" --num_inference_steps 40 --device cpu --output {path}"
    benchmark.main(line.split())
    return json.loads(path.read_text())


def test_every_method_stands_beside_the_pipeline_that_does_the_same(figures):
    lines = [(line["name"], line["batch_size"]) for line in figures["lines"]]
    assert set(lines) >= {
        ("img2img", 2),
        ("diffusers StableDiffusionImg2ImgPipeline", 2),
        ("distdiff", 2),
        ("dreamda", 2),
        ("gif", 2),
        ("diffusers CycleDiffusionPipeline", 1),
    }
    rows = {line["name"]: line["rows_per_image"] for line in figures["lines"]}
    assert rows["img2img"] == rows["diffusers StableDiffusionImg2ImgPipeline"] == 2 * 20
    assert rows["distdiff"] == 2 * 20 + 2 * 2  # a look-ahead of two steps
    assert rows["gif"] == 2 * 36
    assert rows["dreamda"] == 2 * 32 + 32 / 2  # one inversion for two variants
    assert rows["diffusers CycleDiffusionPipeline"] == 4 * 32


def test_phases_make_up_the_time(figures):
    for line in figures["lines"]:
        if line["name"].startswith("diffusers"):
            continue
        seconds = line["seconds_per_image"]
        assert seconds["denoise"] > seconds["decode"] > 0 and seconds["write"] > 0
        assert (seconds["guide"] > 0) == (line["name"] in ("distdiff", "gif"))
        in_turn = sum(value for name, value in seconds.items() if name not in ("load", "write"))
        outside = seconds["other"] + seconds["idle"]
        assert line["overhead"] == pytest.approx(outside / in_turn, rel=0.05)


def test_the_report_has_a_line_for_each(figures, digits_dir, capsys):
    line = f"--data_dir {digits_dir} --methods img2img --batch_sizes 2 --num_images_per_prompt 2"
    benchmark.main(f"{line} --rounds 2 --num_inference_steps 4 --device cpu --no-rivals".split())
    printed = capsys.readouterr().out
    assert "median of 2 rounds" in printed and "diffusers" not in printed
    assert len(re.findall(r"^img2img +2 ", printed, re.M)) == 2


def test_rows_and_operations_are_counted(pipeline):
    with counted_rows(pipeline.unet) as rows, torch.no_grad():
        pipeline.unet(torch.zeros(3, 4, 8, 8), 1, encoder_hidden_states=torch.zeros(3, 77, 64))
    assert rows == [3] and not pipeline.unet._forward_pre_hooks
    operations = unet_flops(pipeline.unet, 8)
    assert 0.05e9 < operations < 0.2e9
    assert 3 < unet_flops(pipeline.unet, 16) / operations < 6  # four times the cells
    assert 1e9 < matrix_rate(torch.device("cpu"), torch.float32) < 1e13


def test_networks_of_full_size_have_the_parts_of_the_published_ones(pipeline):
    full = random_pipeline("sd1", pipeline.tokenizer, pipeline.scheduler, "float32", "meta")
    sizes = {
        name: sum(p.numel() for p in getattr(full, name).parameters())
        for name in ("unet", "vae", "text_encoder")
    }
    assert sizes == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    parts = pipeline.tokenizer, pipeline.scheduler, "float32", "meta"
    assert random_pipeline("sd1", *parts, image_unet=True).unet.conv_in.in_channels == 8
    xl = random_pipeline("sdxl", *parts)
    sizes = {
        name: sum(p.numel() for p in getattr(xl, name).parameters())
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    assert sizes == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


@pytest.mark.slow
def test_a_method_that_edits_images_is_measured_on_a_checkpoint_for_it(
    digits_dir, tmp_path, capsys
):
    line = f"--data_dir {digits_dir} --methods diffusemix --batch_sizes 2 --num_inference_steps 2"
    line += " --rounds 1 --device cpu --num_images_per_prompt 2 --pretrained_model_name_or_path"
    benchmark.main([*line.split(), str(editing_model(tmp_path / "model"))])
    assert len(re.findall(r"^diffusemix +2 ", capsys.readouterr().out, re.M)) == 2


def test_few_variants_are_made_again_under_other_names():
    record = ImageRecord(Path("a.png"), "a.png", 0, "a")
    variants = [Variant(record, number, f"a/{number}.png", "a") for number in range(3)]
    made = some_variants(variants, 7)
    assert [variant.number for variant in made] == [0, 1, 2, 0, 1, 2, 0]
    assert len({variant.file_name for variant in made}) == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--methods distdif", "did you mean 'distdiff'"),
        ("--batch_sizes 0 1", "batch_sizes 0"),
        ("--rounds 0", "rounds 0"),
    ],
)
def test_wrong_settings_are_named(line, message):
    with pytest.raises(InputError, match=re.escape(message)):
        benchmark.main(line.split())
