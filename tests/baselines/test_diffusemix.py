"""DiffuseMix: edits against diffusers' own pipeline, masks, fractals, and whole runs."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline
from PIL import Image

import expand
from baselines.diffusemix.config import DiffuseMixConfig
from baselines.diffusemix.fractals import (
    NUM_FRACTALS,
    FolderFractals,
    OwnFractals,
    fractal,
    random_system,
)
from baselines.diffusemix.mixing import SEAM, SIDES, real_share
from baselines.diffusemix.sampler import DiffuseMixSampler
from baselines.text2img import Text2ImgSampler
from baselines.text2img_config import Text2ImgConfig
from expansion.common.errors import InputError
from expansion.diffusion.samples import Batch
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL
from tests.helpers.checkpoint_stand_ins import editing_model

STEPS = 5
SMALL = DiffuseMixConfig(num_inference_steps=STEPS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint that edits images, after a fashion."""
    return editing_model(tmp_path_factory.mktemp("models") / "editing")


@pytest.fixture(scope="module")
def editing(model):
    return load_pipeline(str(model), image_unet=True)


def generators(count: int = 4, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(70 + first + i) for i in range(count)]


def make_batch(rows: slice = slice(None)) -> Batch:
    """Two real images with two variants each, or some rows of it."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    index = torch.tensor([0, 0, 1, 1])[rows]
    prompts = ["Autumn", "snowy", "a mosaic", "sunset"][rows]
    return Batch(images, ("a", "b"), index, prompts, torch.tensor([1, 1, 2, 2])[rows], (7, 8))


def theirs(editing, config: DiffuseMixConfig, batch: Batch, drawn: list) -> torch.Tensor:
    """The edits of diffusers' pipeline with DDIM."""
    scheduler = DDIMScheduler.from_config(editing.scheduler.config)
    parts = {**editing.components, "scheduler": scheduler}
    parts = {name: part for name, part in parts.items() if name != "image_encoder"}
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=list(batch.prompts),
        image=batch.images[batch.source_index],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        image_guidance_scale=config.image_guidance_scale,
        negative_prompt=[config.negative_prompt] * len(batch),
        generator=drawn,
        output_type="pt",
    ).images


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 7.0, "image_guidance_scale": 1.0, "negative_prompt": "a blur"},
        {"guidance_scale": 1.0},
    ],
    ids=["defaults", "other scales", "no guidance"],
)
def test_an_edit_equals_the_pipeline_of_diffusers(editing, settings):
    config = dataclasses.replace(SMALL, **settings)
    ours = DiffuseMixSampler(editing, config).edit(make_batch(), generators())
    expected = theirs(editing, config, make_batch(), generators())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    other = dataclasses.replace(make_batch(), images=make_batch().images.flip(0))
    moved = DiffuseMixSampler(editing, config).edit(other, generators())
    assert (moved - ours).abs().max() > 0.02  # the real image matters


def test_the_guidance_is_that_of_both_conditions(editing):
    """e(0,0) + 4 (e(c,i) - e(0,i)) + 1.5 (e(0,i) - e(0,0)) = 2 + 4 (7 - 3) + 1.5 (3 - 2)."""
    denoiser = DiffuseMixSampler(editing, SMALL).denoiser
    rows = torch.tensor([7.0, 3.0, 2.0]).view(3, 1, 1, 1)
    assert denoiser.guide(rows, denoiser.timesteps[0]).item() == 19.5
    assert denoiser.guide(rows, denoiser.timesteps[0], torch.tensor([2.0])).item() == 11.5


@pytest.mark.slow
def test_an_edit_starts_from_the_noise_of_text_to_image(editing, pipeline):
    text2img = Text2ImgSampler(pipeline, Text2ImgConfig(num_inference_steps=STEPS))
    start, _ = DiffuseMixSampler(editing, SMALL).start(make_batch(), generators())
    assert torch.equal(start, text2img.start(make_batch(), generators())[0])


@pytest.mark.parametrize(
    "interval, rows", [((0.0, 1.0), 3 * STEPS), ((0.2, 0.6), 3 * 2 + 3)], ids=["all", "interval"]
)
def test_the_counted_rows_are_those_of_the_config(editing, interval, rows):
    config = dataclasses.replace(SMALL, guidance_interval=interval)
    counted = []
    hook = editing.unet.register_forward_hook(lambda _, inputs, __: counted.append(len(inputs[0])))
    try:
        DiffuseMixSampler(editing, config).sample(make_batch(), generators())
    finally:
        hook.remove()
    assert sum(counted) / 4 == config.unet_rows_per_image(1) == rows
    assert DiffuseMixConfig().unet_rows_per_image(9) == 300


@pytest.mark.slow
@pytest.mark.parametrize("mix_compat", SIDES)
def test_batches_of_one_and_of_four_give_the_same_images(editing, mix_compat):
    sampler = DiffuseMixSampler(editing, dataclasses.replace(SMALL, mix_compat=mix_compat))
    together = sampler.sample(make_batch(), generators())
    alone = [sampler.sample(make_batch(slice(i, i + 1)), generators(1, i)) for i in range(4)]
    for name in ("mask", "fractal"):
        assert together.details[name].tolist() == [s.details[name].item() for s in alone]
    images = torch.cat([samples.images for samples in alone])
    torch.testing.assert_close(together.images, images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mix_compat", SIDES)
def test_an_identical_edit_and_no_fractal_give_the_real_image(editing, mix_compat, monkeypatch):
    config = dataclasses.replace(SMALL, fractal_weight=0.0, mix_compat=mix_compat)
    sampler, batch = DiffuseMixSampler(editing, config), make_batch()
    real = batch.images[batch.source_index]
    monkeypatch.setattr(sampler, "edit", lambda batch, generators: real.clone())
    samples = sampler.sample(batch, generators())
    assert torch.equal(samples.images, real)
    assert samples.details["edit_distance"].tolist() == [0] * 4


@pytest.mark.parametrize("side", SIDES["paper"])
def test_exactly_the_named_half_stays_real(side):
    share = real_share(side, 6, 8)
    half = {"left": np.s_[:, :4], "right": np.s_[:, 4:], "top": np.s_[:3], "bottom": np.s_[3:]}
    assert share.shape == (6, 8) and share.sum() == 24 and (share[half[side]] == 1).all()


def test_the_seam_of_the_released_code_is_linear_and_in_the_middle():
    line = real_share("left", 2, 512, SEAM)[0]
    assert (line[:246] == 1).all() and (line[266:] == 0).all()
    torch.testing.assert_close(line[246:266], torch.linspace(1, 0, 20))
    assert torch.equal(real_share("top", 512, 3, SEAM)[:, 0], line)
    assert torch.equal(real_share("right", 2, 512, SEAM)[0], line.flip(0))
    assert real_share("left", 2, 32, SEAM)[0].tolist() == [1.0] * 16 + [0.0] * 16  # 1.25 pixels


@pytest.mark.slow
def test_half_of_an_image_is_real_and_the_fractal_lies_over_it(editing):
    config = dataclasses.replace(SMALL, fractal_weight=0.25)
    sampler, batch = DiffuseMixSampler(editing, config), make_batch()
    samples = sampler.sample(batch, generators())
    edits = sampler.edit(batch, generators())
    for i, source in enumerate(batch.source_index.tolist()):
        share = real_share(SIDES["paper"][samples.details["mask"][i]], 32, 32)
        picture = OwnFractals().picture(int(samples.details["fractal"][i]), 32)
        mixed = share * batch.images[source] + (1 - share) * edits[i]
        torch.testing.assert_close(
            samples.images[i], 0.75 * mixed + 0.25 * picture, atol=1e-5, rtol=0
        )


def test_each_generator_draws_its_own_mask_and_fractal(editing, monkeypatch):
    sampler = DiffuseMixSampler(editing, dataclasses.replace(SMALL, fractal_weight=0.0))
    rows = 60
    image = torch.zeros(1, 3, 32, 32)
    index = torch.zeros(rows, dtype=torch.long)
    batch = Batch(image, ("a",), index, ["Autumn"] * rows, index, (7,))
    monkeypatch.setattr(sampler, "edit", lambda batch, generators: image.expand(rows, -1, -1, -1))
    details = sampler.sample(batch, generators(rows)).details
    assert details["mask"].unique().tolist() == [0, 1, 2, 3]
    assert len(details["fractal"].unique()) > 50 and details["fractal"].max() < NUM_FRACTALS


def test_a_fractal_is_the_same_each_time_and_another_for_another_number():
    first, again, other = fractal(1, 64), fractal(1, 64), fractal(2, 64)
    assert first.shape == (64, 64, 3) and first.dtype == np.float32
    assert 0 <= first.min() and first.max() <= 1
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # At half of the size it is the same picture, coarser.
    coarse = fractal(1, 32).mean(axis=-1).ravel()
    reduced = first.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3, 4)).ravel()
    assert np.corrcoef(coarse, reduced)[0, 1] > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_the_maps_of_a_fractal_bring_points_nearer(seed):
    maps, shifts, odds = random_system(np.random.default_rng(seed))
    stretches = np.linalg.svd(maps, compute_uv=False)
    assert stretches.max() <= 0.9 + 1e-9 and len(shifts) == len(odds) == len(maps)
    assert odds.sum() == pytest.approx(1)


def test_fractals_fill_a_fair_part_of_their_frame():
    for number in range(8):
        picture = OwnFractals().picture(number, 48)
        background = picture.flatten(1).mode(dim=1).values.view(3, 1, 1)
        assert 0.05 < ((picture - background).abs().sum(0) > 0.05).float().mean() < 0.95


def colours(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (10, 20), (50 * i + 50, 0, 0)).save(folder / name)


def test_images_of_a_folder_are_numbered_by_name_and_squashed(tmp_path):
    colours(tmp_path / "f", "a.png", "b.png")
    fractals = FolderFractals(str(tmp_path / "f"))
    assert len(fractals) == 2
    for number in range(2):
        picture = fractals.picture(number, 16)
        assert picture.shape == (3, 16, 16)
        assert picture[0].unique() * 255 == pytest.approx(50 * number + 50)


# Whole runs.


def command(digits_dir, output, *options: object, model=TINY_MODEL) -> list[str]:
    line = f"-d digits --data_dir {digits_dir} --method diffusemix --shots 1 --batch_size 4"
    line += f" --num_images_per_prompt 2 --num_inference_steps {STEPS} --device cpu"
    line += f" --pretrained_model_name_or_path {model} --output_dir {output}"
    return [*line.split(), *map(str, options)]


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("*/*.png")}


@pytest.fixture(scope="module")
def whole(digits_dir, tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert not expand.main(command(digits_dir, folder, model=model))
    return folder


@pytest.mark.slow
def test_digits_are_expanded_and_keep_their_labels(whole):
    rows = rows_of(whole)
    assert len(rows) == 20
    for row in rows:
        assert row["source"].split("/")[1] == row["file_name"].split("/")[0]
        assert set(row["details"]) == {"mask", "fractal", "edit_distance"}
        assert row["prompt"].startswith("A transformed version of image into ")
    assert len({row["prompt"] for row in rows}) > 5


@pytest.mark.slow
def test_shards_make_the_same_images(whole, digits_dir, tmp_path, model):
    for split in range(2):
        arguments = ["--total_split", 2, "--split", split]
        assert not expand.main(command(digits_dir, tmp_path / "out", *arguments, model=model))
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_images(
    whole, digits_dir, tmp_path, model, warm_processes
):
    out = tmp_path / "out"
    arguments = command(digits_dir, out, model=model)
    killed = warm_processes.start(arguments, tmp_path / "log.txt", die=(out, 20, 0.0))
    assert killed.wait() == -9 and 0 < len(contents(out)) < 20
    assert warm_processes.start(arguments, tmp_path / "log.txt").wait() == 0
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_the_content_of_a_folder_of_fractals_is_part_of_a_set(digits_dir, tmp_path, model):
    colours(tmp_path / "f", "a.png", "b.png")
    shutil.copytree(tmp_path / "f", tmp_path / "moved")
    few = ["--num_images_per_prompt", 1, "--num_inference_steps", 1, "--fractals"]

    def run(name: str) -> int:
        options = [*few, tmp_path / name]
        return expand.main(command(digits_dir, tmp_path / "out", *options, model=model))

    assert not run("f") and not run("moved")  # where it lies does not matter
    assert {row["details"]["fractal"] for row in rows_of(tmp_path / "out")} == {0, 1}
    colours(tmp_path / "moved", "a.png", "b.png", "c.png")
    with pytest.raises(InputError, match="fractals"):
        run("moved")


# What is refused, before weights load.


def refused(digits_dir, tmp_path, *options: object, model=TINY_MODEL) -> str:
    with pytest.raises(InputError) as error:
        expand.main(command(digits_dir, tmp_path / "out", *options, "--dry_run", model=model))
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_that_cannot_edit_is_refused(digits_dir, tmp_path):
    words = refused(digits_dir, tmp_path)
    assert "cannot edit images: its unet takes 4 channels, not 8" in words
    assert "InstructPix2Pix, such as timbrooks/instruct-pix2pix, as a diffusers folder" in words
    (tmp_path / "sd.safetensors").write_bytes(b"")
    words = refused(digits_dir, tmp_path, model=tmp_path / "sd.safetensors")
    assert "one file" in words and "timbrooks/instruct-pix2pix" in words


def test_a_checkpoint_that_edits_is_refused_by_other_methods(digits_dir, tmp_path, model):
    words = refused(digits_dir, tmp_path, "--method", "img2img", model=model)
    assert "InstructPix2Pix" in words and "text-to-image checkpoint" in words
    with pytest.raises(InputError, match="InstructPix2Pix"):
        load_pipeline(str(model))


def test_a_hub_id_passes_the_plan(digits_dir, tmp_path, make_folder, monkeypatch, capsys):
    hub = "timbrooks/instruct-pix2pix"
    assert not expand.main(command(digits_dir, tmp_path / "out", "--dry_run", model=hub))
    # It is the default for images of which no dataset file says otherwise.
    classes = {"ant": ["1.png"], "bee": ["1.png"]}
    photos = make_folder("photos", {"train": classes, "test": classes})
    monkeypatch.chdir(tmp_path)
    assert not expand.main(["-d", str(photos), "--method", "diffusemix", "--dry_run"])
    shown = capsys.readouterr().out
    assert shown.count(f"pretrained_model_name_or_path: {hub}") == 2
    assert "U-Net rows: 300 per image" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strength", "0.5"], "strength 0.5: an edit starts from noise alone"),
        (["--image_guidance_scale", "0.5"], "image_guidance_scale 0.5: give 1 or more"),
        (["--fractal_weight", "1.5"], "fractal_weight 1.5: give a number from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(digits_dir, tmp_path, options, words):
    assert words in refused(digits_dir, tmp_path, *options)


def test_a_folder_without_images_or_with_damaged_ones_is_refused(digits_dir, tmp_path, model):
    def words(folder) -> str:
        return refused(digits_dir, tmp_path, "--fractals", folder, model=model)

    assert "nowhere is no folder with images" in words(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty is no folder with images; give one" in words(tmp_path / "empty")
    colours(tmp_path / "f", "a.png")
    (tmp_path / "f" / "b.png").write_bytes(b"no image")
    message = words(tmp_path / "f")
    assert "b.png" in message and message.endswith("replace or remove it")


@pytest.mark.parametrize(
    "mix_compat, prompt", [("paper", "image into Autumn"), ("released", "Aut")]
)
def test_prompts_are_those_of_the_paper_or_bare(mix_compat, prompt):
    prompts = DiffuseMixConfig(mix_compat=mix_compat).class_prompts("cat", "cat")
    assert len(prompts) == 9 and prompt in prompts[0]
    assert all(p.startswith("A transformed") == (mix_compat == "paper") for p in prompts)
