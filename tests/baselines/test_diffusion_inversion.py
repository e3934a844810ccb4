"""Samples of Diffusion Inversion: eta as diffusers has it, partners, embeddings, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import expand
from baselines.diffusion_inversion.config import DiffusionInversionConfig
from baselines.diffusion_inversion.sampler import DiffusionInversionSampler
from baselines.text2img import Text2ImgSampler
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.diffusion.samples import Batch
from tests.helpers.embeddings import stand_in_embeddings

FEW = {"num_inference_steps": 6}


@pytest.fixture(scope="module")
def inverted(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings") / "inverted"
    return stand_in_embeddings(folder, "diffusion_inversion", digits_dir, "--shots", 3)


@pytest.fixture(scope="module")
def records(digits_dir):
    return few_shot(load_dataset("digits", digits_dir).records("train"), 3, 0)


def generators(count: int = 4, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + first + i) for i in range(count)]


def batch_of(records) -> Batch:
    names = [record.file_name for record in records]
    targets = torch.tensor([record.label for record in records])
    images = torch.zeros(len(records), 3, 32, 32)
    return Batch(images, names, torch.arange(len(names)), [""] * len(names), targets,
                 range(len(names)))  # fmt: skip


def sampler_of(pipeline, inverted, records, **options) -> DiffusionInversionSampler:
    config = DiffusionInversionConfig(embeddings=str(inverted), **{**FEW, **options})
    sampler = DiffusionInversionSampler(pipeline, config)
    sampler.prepare(records)
    return sampler


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_steps_with_fresh_noise_equal_those_of_diffusers(pipeline, inverted, records, eta):
    sampler = sampler_of(pipeline, inverted, records, eta=eta)
    batch = batch_of(records[:4])
    ours = sampler.sample(batch, generators()).images
    drawn = generators()
    latents = Text2ImgSampler.noise(sampler, batch, drawn)
    means, own = sampler.embed(batch, drawn).chunk(2)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    parts = {**pipeline.components, "scheduler": scheduler}
    theirs = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        prompt_embeds=own,
        negative_prompt_embeds=means,
        latents=latents,
        num_inference_steps=6,
        guidance_scale=2.0,
        eta=eta,
        generator=drawn,
        height=32,
        width=32,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, images, atol=1e-4, rtol=0)
    still = sampler_of(pipeline, inverted, records, eta=0.0).sample(batch, generators()).images
    assert (still - ours).abs().max() > 0.01


def test_without_interpolation_and_noise_a_prompt_is_the_embedding_itself(
    pipeline, inverted, records
):
    plain = sampler_of(pipeline, inverted, records, interpolation=0.0, embedding_noise=0.0)
    means, own = plain.embed(batch_of(records[:4]), generators()).chunk(2)
    for record, mean, embedding in zip(records[:4], means, own, strict=True):
        trained = load_file(inverted / f"{record.class_name}.safetensors")
        assert torch.equal(embedding, trained[record.file_name])
        torch.testing.assert_close(mean, torch.stack(list(trained.values())).mean(dim=0))


def test_partners_are_always_images_of_the_same_class(pipeline, inverted, records):
    sampler = sampler_of(pipeline, inverted, records, interpolation=1.0, embedding_noise=0.0)
    batch = batch_of(records)
    partners = set()
    for first in range(0, 600, 30):
        _, own = sampler.embed(batch, generators(30, first)).chunk(2)
        for record, embedding in zip(records, own, strict=True):
            found = [n for n, e in sampler.embedding_of.items() if torch.equal(e, embedding)]
            assert len(found) == 1 and found[0].split("/")[-2] == record.class_name
            partners.add((record.file_name, found[0]))
    assert len(partners) == 10 * 3 * 3  # every image of the class, itself among them
    lonely = sampler_of(pipeline, inverted, records[::3], embedding_noise=0.0)
    _, own = lonely.embed(batch_of(records[:1]), generators(1)).chunk(2)
    assert torch.equal(own[0], lonely.embedding_of[records[0].file_name])


def test_mixture_and_noise_have_their_weights(pipeline, inverted, records):
    sampler = sampler_of(pipeline, inverted, records, interpolation=0.1, embedding_noise=0.1)
    own = sampler.embed(batch_of(records[:1]), generators(1)).chunk(2)[1][0]
    again = torch.Generator().manual_seed(1000)
    names = sampler.members[records[0].class_name, 0]
    j = int(torch.randint(len(names), (), generator=again))
    noise = torch.randn((5, 64), generator=again)
    mine, other = (sampler.embedding_of[n] for n in (records[0].file_name, names[j]))
    torch.testing.assert_close(own, 0.9 * mine + 0.1 * other + 0.1 * noise)


@pytest.mark.slow
def test_an_image_is_the_same_alone_and_its_rows_are_counted(pipeline, inverted, records):
    sampler = sampler_of(pipeline, inverted, records)
    rows: list[int] = []
    hook = pipeline.unet.register_forward_hook(
        lambda _, inputs, output: rows.append(len(inputs[0]))
    )
    together = sampler.sample(batch_of(records[:3]), generators(3)).images
    hook.remove()
    assert sum(rows) == 3 * sampler.config.unet_rows_per_image(1) == 3 * 12
    alone = sampler.sample(batch_of(records[1:2]), generators(1, first=1)).images
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=0)
    assert DiffusionInversionConfig().unet_rows_per_image(5) == 200


def arguments(digits_dir, folder, inverted, *options: object) -> list[str]:
    line = f"-d digits --data_dir {digits_dir} --method diffusion_inversion --shots 2"
    line += f" --embeddings {inverted} --num_images_per_prompt 1 --num_inference_steps 2"
    line += f" --device cpu --output_dir {folder}"
    return [*line.split(), *map(str, options)]


def refusal(digits_dir, folder, inverted, *options) -> str:
    with pytest.raises(InputError) as caught:
        expand.main([*arguments(digits_dir, folder, inverted, *options), "--dry_run"])
    return str(caught.value)


@pytest.mark.slow
def test_a_set_of_digits_goes_on_and_names_its_training(digits_dir, inverted, tmp_path, capsys):
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert not expand.main(arguments(digits_dir, once, inverted))
    assert not expand.main(arguments(digits_dir, twice, inverted, "--total_split", 2, "--split", 1))
    assert not expand.main(arguments(digits_dir, twice, inverted))
    names = sorted(path.relative_to(once) for path in once.glob("*/*.png"))
    assert len(names) == 20
    assert all((once / n).read_bytes() == (twice / n).read_bytes() for n in names)
    capsys.readouterr()
    expand.main([*arguments(digits_dir, once, inverted), "--dry_run"])
    # 30 images x 3000 visits x 2 rows, for 20 images.
    assert "training: 180000 U-Net rows, 9e+03 per image" in capsys.readouterr().out
    assert json.loads((once / "plan.json").read_text())["training_unet_rows"] == 180000


def test_images_without_an_embedding_and_changed_ones_are_named(
    digits_dir, inverted, records, tmp_path
):
    out = tmp_path / "out"
    message = refusal(digits_dir, out, inverted, "--shots", 5)
    assert "20 of 50 real images have no embedding: " in message and "--shots" in message
    foreign = tmp_path / "foreign"
    shutil.copytree(inverted, foreign)
    save_file({"x": torch.zeros(1)}, foreign / "0.safetensors")
    assert "2 of 20 real images have no embedding: " in refusal(digits_dir, out, foreign)
    data = tmp_path / "data"
    shutil.copytree(digits_dir / "digits", data / "digits")
    chosen = few_shot(load_dataset("digits", data).records("train"), 2, 0)[0]
    Image.new("RGB", (32, 32), "grey").save(chosen.path)
    message = refusal(data, out, inverted)
    assert f"1 of 20 real images have changed since: {chosen.file_name}" in message


def test_damaged_files_are_named_before_weights_load(digits_dir, inverted, tmp_path):
    out, copy = tmp_path / "out", tmp_path / "copy"
    shutil.copytree(inverted, copy)
    path = copy / "0.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        good = file.metadata()
    for text in ("{", "[]", '{"a.png": 1}', '{"a.png": ["x", null]}', '{"a": [0, null], "a": []}'):
        save_file(tensors, path, {"images": text})
        message = refusal(digits_dir, out, copy)
        assert "0.safetensors is damaged; remove it, and the command" in message
    save_file(dict(list(tensors.items())[1:]), path, good)
    assert "0.safetensors is damaged; remove it" in refusal(digits_dir, out, copy)
    save_file(tensors, path, good)
    expand.main([*arguments(digits_dir, out, copy), "--dry_run"])


def test_settings_that_have_no_effect_are_refused(digits_dir, inverted, tmp_path):
    out = tmp_path / "out"
    message = refusal(digits_dir, out, inverted, "--negative_prompt", "blurred")
    assert "embeddings in place of prompts" in message
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({str(i): ["a digit"] for i in range(10)}))
    for given in (("--prompt_template", "a {}"), ("--prompts_file", prompts)):
        message = refusal(digits_dir, out, inverted, *given)
        assert "embeddings in place of prompts; leave them out" in message
    message = refusal(digits_dir, out, inverted, "--solver", "unipc")
    assert "give --eta 0 with unipc" in message
    with pytest.raises(InputError, match="this method needs --embeddings, .* baselines.diffusion"):
        expand.main("-d digits --method diffusion_inversion --data_dir".split() + [str(digits_dir)])
