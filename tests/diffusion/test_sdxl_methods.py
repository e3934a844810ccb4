"""Stable Diffusion XL with every method and command, and adapters for it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import expand
import train_expand
from baselines.diffusion_inversion import __main__ as inversion
from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from dreamda.config import DreamDAConfig
from dreamda.finetune import __main__ as finetune
from dreamda.finetune import trainer
from dreamda.perturbation import forked_features, perturbed_features
from dreamda.sampler import DreamDASampler
from expansion.classifier.backbones import Classifier
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import PromptEncoder
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.lora import add_lora, check_lora
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.generation import run
from expansion.generation.plan import make_plan
from tests.helpers.tiny_checkpoints import PROMPTS, generators, make_batch

pytestmark = pytest.mark.slow  # whole samplers, trainings and commands


def guided(sdxl, **options) -> DistDiffSampler:
    torch.manual_seed(0)
    guide = Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False)
    steps = {"num_inference_steps": 4, "guidance_step": 2, "guidance_scale": 3.0}
    config = DistDiffConfig(encoder_weight_path="guide", **steps, **options)
    sampler = DistDiffSampler(sdxl, config, guide)
    sampler.use_prototypes(Prototypes(torch.rand(10, 128), torch.rand(10, 3, 128)))
    return sampler


def test_distdiff_lowers_the_energy_and_within_a_ball_of_radius_0_is_img2img(sdxl):
    plain = Img2ImgSampler(sdxl, SamplerConfig(num_inference_steps=4, guidance_scale=3.0))
    still = guided(sdxl, constraint_value=0.0).sample(make_batch(), generators())
    unguided = plain.sample(make_batch(), generators()).images
    torch.testing.assert_close(still.images, unguided, atol=1e-5, rtol=0)
    step = {"rho": 1e-3, "rho_mode": "unit", "transform_start": "identity"}
    sampler, labels = guided(sdxl, **step), make_batch().targets
    with torch.no_grad():
        latents, conditioning = sampler.start(make_batch(), generators())
        guidance, window = sampler.guidance(), sampler.denoiser.timesteps[-2:]
        moved = guidance.transform(latents, window, conditioning, labels, generators())
        before, after = (
            guidance.look_ahead_energy(z, window, conditioning, labels)
            for z in (latents, moved.latents)
        )
    slope = moved.figures["gradient_norm"]  # a small step against the gradient lowers by its length
    torch.testing.assert_close(before - after, 1e-3 * slope, rtol=0.1, atol=2e-6)
    assert (slope > 1e-3).all()


@pytest.mark.parametrize(("location", "perturb"), [("bottleneck", "released"), ("encoder", "eq6")])
def test_dreamda_without_noise_gives_the_real_image_back_and_with_noise_another(
    sdxl, location, perturb
):
    """Under the source prompt the corrections undo every error of the U-Net."""
    options = {"num_inference_steps": 5, "guidance_scale": 1.0, "source_guidance_scale": 1.0}
    options |= {"location": location, "perturb": perturb}
    batch = dataclasses.replace(make_batch(), prompts=[""] * 3)
    quiet, noisy = (
        DreamDASampler(sdxl, DreamDAConfig(noise_scale=scale, **options)) for scale in (0.0, 3.0)
    )
    real = torch.cat([quiet.codec.encode_one(*each) for each in zip(
        [batch.sources[i] for i in (0, 1, 1)], batch.images[batch.source_index],
        [torch.Generator().manual_seed(seed) for seed in (7, 8, 8)], strict=True)])  # fmt: skip
    back = quiet.sample(batch, generators()).images
    torch.testing.assert_close(back, quiet.codec.decode(real), atol=2e-3, rtol=0)
    assert (noisy.sample(batch, generators()).images - back).abs().max() > 0.05


def test_eq6_computes_the_clean_and_the_perturbed_prediction_of_sdxl(sdxl):
    """As two calls of the U-Net, of which the second is perturbed."""
    conditioning = PromptEncoder(sdxl)(PROMPTS, "blurred")
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(6, 4, 8, 8, generator=draw)
    for location in ("bottleneck", "encoder", "decoder"):
        with torch.no_grad():
            clean = sdxl.unet(latents, 500, **conditioning.unet_inputs).sample
            with perturbed_features(sdxl.unet, location, lambda x: x + 0.3):
                perturbed = sdxl.unet(latents, 500, **conditioning.unet_inputs).sample
            with forked_features(sdxl.unet, location, lambda x: x + 0.3):
                both = sdxl.unet(latents, 500, **conditioning.unet_inputs).sample
        torch.testing.assert_close(both, torch.cat([clean, perturbed]), atol=1e-5, rtol=1e-5)
        assert (clean - perturbed).abs().max() > 1e-3


def lora_state(sdxl, form: str) -> dict[str, Tensor]:
    """Adapters of rank 2 of some maps: in diffusers' format, or in kohya's."""
    draw, state = torch.Generator().manual_seed(3), {}
    for part in ("unet", "text_encoder_2"):
        for key, value in getattr(sdxl, part).state_dict().items():
            if re.search(r"(to_k|to_q|q_proj|out_proj)\.weight$", key):
                layer = key.removesuffix(".weight")
                down = torch.randn(2, value.shape[1], generator=draw)
                up = 0.1 * torch.randn(value.shape[0], 2, generator=draw)
                if form == "diffusers":
                    kind = "lora" if part == "unet" else "lora_linear_layer"
                    state |= {f"{part}.{layer}.{kind}.down.weight": down}
                    state |= {f"{part}.{layer}.{kind}.up.weight": up}
                    continue
                prefix = {"unet": "lora_unet", "text_encoder_2": "lora_te2"}[part]
                name = f"{prefix}_{layer.replace('.', '_')}"
                state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                state |= {f"{name}.alpha": torch.tensor(2.0)}
    return state


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_adapters_are_added_to_u_net_and_second_text_encoder(sdxl_dir, tmp_path, form):
    pytest.importorskip("peft")
    pipeline, plain = load_pipeline(str(sdxl_dir)), load_pipeline(str(sdxl_dir))
    save_file(lora_state(plain, form), tmp_path / "style.safetensors", {"format": "pt"})
    state = lora_state(plain, "diffusers")
    check_lora(str(tmp_path / "style.safetensors"), str(sdxl_dir))
    add_lora(pipeline, str(tmp_path / "style.safetensors"), 0.5)
    changed = 0
    for part in ("unet", "text_encoder", "text_encoder_2"):
        after = getattr(pipeline, part).state_dict()
        for key, value in getattr(plain, part).state_dict().items():
            kind = "lora" if part == "unet" else "lora_linear_layer"
            name, added = f"{part}.{key.removesuffix('.weight')}.{kind}", 0
            if f"{name}.down.weight" in state:
                added = 0.5 * state[f"{name}.up.weight"] @ state[f"{name}.down.weight"]
                changed += 1
            torch.testing.assert_close(after[key], value + added, atol=1e-5, rtol=1e-5)
    assert changed == len(state) // 2 > 4


@pytest.mark.parametrize(
    "name",
    [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight",
    ],
)
def test_adapters_for_another_family_are_refused_before_weights_load(sdxl_dir, tmp_path, name):
    state = {name: torch.zeros(4, 768), name.replace("attn2", "attn1"): torch.zeros(4, 320)}
    for factor, other in (("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_down", "lora_up")):
        state |= {k.replace(factor, other): torch.zeros(320, 4) for k in [*state] if factor in k}
    save_file(state, tmp_path / "style.safetensors")
    words = r"is for Stable Diffusion 1.x \(texts of width 768\), the checkpoint .* is a U-Net \(te"
    with pytest.raises(InputError, match=words):
        check_lora(str(tmp_path / "style.safetensors"), str(sdxl_dir))


@pytest.fixture
def given(sdxl_dir, make_folder, tmp_path, monkeypatch) -> list[str]:
    """Options of commands that go to two photos, one of each class, and the tiny SDXL."""
    monkeypatch.chdir(tmp_path)
    classes = {"ant": ["1.png", "2.png"], "bee": ["1.png", "2.png"]}
    photos = make_folder("photos", {"train": classes, "test": classes})
    return ["-d", str(photos), "--pretrained_model_name_or_path", str(sdxl_dir)]


def test_adapters_that_fine_tuning_writes_make_the_fine_tuned_checkpoint(
    given, sdxl_dir, tmp_path, monkeypatch
):
    pytest.importorskip("peft")
    monkeypatch.setattr("dreamda.finetune.report.SAMPLING_STEPS", 2)
    options = "--output_dir tuned --lora_rank 2 --max_train_steps 2 --train_batch_size 2 "
    options += "--learning_rate 0.01 --save_dtype float32 --caption_dropout 0.5"
    finetune.main([*given, *options.split()])
    tuned, plain = load_pipeline("tuned"), load_pipeline(str(sdxl_dir))
    assert Path("tuned/samples.png").is_file()
    ours, before = (each.unet.state_dict() for each in (tuned, plain))
    assert any((ours[key] - value).abs().max() > 1e-4 for key, value in before.items())
    alone = shutil.copy("tuned/pytorch_lora_weights.safetensors", tmp_path / "ants.safetensors")
    add_lora(plain, alone, 1.0)
    for key, value in plain.unet.state_dict().items():
        torch.testing.assert_close(value, ours[key], atol=1e-5, rtol=0)


def test_the_whole_u_net_learns_from_the_sizes_and_the_pooled_text(given, tmp_path, monkeypatch):
    """The conditions of training are those of sampling, and the dropped caption is zeros."""
    seen = []
    errors = trainer.squared_errors

    def spy(unet, scheduler, latents, conditioning, noise, timesteps):
        seen.append(conditioning)
        return errors(unet, scheduler, latents, conditioning, noise, timesteps)

    monkeypatch.setattr(trainer, "squared_errors", spy)
    monkeypatch.setattr(finetune, "_save_samples", lambda *_: None)
    options = "--output_dir tuned --max_train_steps 1 --train_batch_size 8 --caption_dropout 0.5"
    finetune.main([*given, *options.split(), "--captions", "a photo of a {}"])
    rows = seen[0]
    encoder = PromptEncoder(load_pipeline(given[-1]))
    known = encoder(["", "a photo of a ant", "a photo of a bee"], None)
    assert rows.added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 8
    found = set()
    for i in range(8):
        near = [
            torch.allclose(rows.prompt_embeds[i], known.prompt_embeds[k], atol=1e-4)
            and torch.allclose(
                rows.added["text_embeds"][i], known.added["text_embeds"][k], atol=1e-4
            )
            for k in range(3)
        ]
        assert sum(near) == 1
        found.add(near.index(True))
    assert found == {0, 1, 2}


@pytest.mark.parametrize(
    ("main", "options", "words"),
    [
        (finetune.main, "--train_text_encoder", "--train_text_encoder is for .* one text encoder"),
        (inversion.main, "--random_flip", "a trained embedding is for .* XL has 2"),
    ],
)
def test_trainings_of_one_text_encoder_refuse_two(given, main, options, words):
    with pytest.raises(InputError, match=words):
        main([*given, "--output_dir", "out", *options.split()])
    assert not Path("out").exists()


def test_images_of_expand_are_those_of_the_sampler_and_a_classifier_learns_from_them(given):
    command = [*given, "--method", "img2img", "--num_inference_steps", "4"]
    command += ["--num_images_per_prompt", "1", "--output_dir", "set"]
    assert expand.main(command) == 0
    written = sorted(Path("set").rglob("*_expand_0.png"))
    assert len(written) == 4
    sampler = Img2ImgSampler(load_pipeline(given[-1]), SamplerConfig(num_inference_steps=4))
    text = Path("set/metadata.jsonl").read_text()
    rows = sorted(map(json.loads, text.splitlines()), key=lambda row: row["file_name"])
    names, prompts = ([row[key] for row in rows] for key in ("source", "prompt"))
    images = [next(Path(given[1]).rglob(name)) for name in names]
    made = sampler.variants(images, prompts=prompts, names=names)
    for path, (image,) in zip(written, made, strict=True):
        with Image.open(path) as stored:
            assert np.abs(np.asarray(stored, int) - np.asarray(image, int)).max() <= 1
    train = "--expanded_dir set --checkpoint_dir c --seeds 1 -a resnet10_tiny --image_size 32 "
    train += "--resize_size 36 --batch_size 4 --workers 0 --budget steps --max_train_steps 2"
    train_expand.main([*given[:2], *train.split(), "--eval_steps", "2"])
    assert list(Path("c").rglob("model_best.pth.tar"))


def test_a_size_that_a_hub_id_would_not_tell_apart_is_refused(given, sdxl):
    """A plan takes 512 pixels for the default of every hub id."""
    config, method_config, _ = expand.parse([*given, "--method", "img2img", "--resolution", "512"])
    plan = dataclasses.replace(make_plan(config, method_config), model="owner/sdxl")
    sampler = Img2ImgSampler(sdxl, method_config)
    with pytest.raises(InputError, match="--resolution 512: images of owner/sdxl are 32 pixels"):
        run._drawing(plan, sampler)
    other = dataclasses.replace(plan, config=dataclasses.replace(config, resolution=None))
    assert run._drawing(other, sampler).resolution == 32
