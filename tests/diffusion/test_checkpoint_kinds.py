"""Checkpoints of other kinds: loaded as they are, or refused in one line before weights load."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

import expand
from baselines.textual_inversion import __main__ as textual_inversion
from distdiff.config import DistDiffConfig
from dreamda.finetune import __main__ as finetune
from expansion.common.errors import InputError
from expansion.diffusion.model_files import (
    check_model_folder,
    check_resolution,
    model_fingerprint,
)
from expansion.diffusion.stable_diffusion import load_pipeline, load_tiny_decoder
from expansion.diffusion.weight_files import weight_files, weight_variant
from expansion.generation.plan import make_plan
from expansion.generation.summary import describe
from tests.conftest import TINY_MODEL
from tests.helpers.checkpoint_stand_ins import (
    as_variant,
    copy_model,
    in_shards,
    save_single_file,
    single_file_state,
)

pytestmark = pytest.mark.slow  # every kind of checkpoint is written, loaded and used

STEMS = {part: "diffusion_pytorch_model" for part in ("unet", "vae")} | {"text_encoder": "model"}


def same_weights(one, other) -> bool:
    return all(
        torch.equal(value, getattr(other, part).state_dict()[key])
        for part in STEMS
        for key, value in getattr(one, part).state_dict().items()
    )


@pytest.fixture
def refused(make_folder, tmp_path, monkeypatch):
    """Function that gives the one line with which all commands refuse a checkpoint."""
    monkeypatch.chdir(tmp_path)
    classes = {"ant": ["1.png"], "bee": ["1.png"]}
    photos = str(make_folder("photos", {"train": classes, "test": classes}))

    def call(model: Path | str, *more: str) -> str:
        given = ["-d", photos, "--output_dir", "out", "--pretrained_model_name_or_path", str(model)]
        messages = set()
        for main, options in (
            (expand.main, ["--method", "img2img", "--dry_run", *more]),
            (expand.main, ["--method", "img2img", *more]),
            (finetune.main, []),
        ):
            with pytest.raises(InputError) as error:
                main([*given, *(options if main is expand.main else [])])
            messages.add(str(error.value))
        assert len(messages) == 1 and not Path("out").exists()
        return messages.pop()

    return call


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet": {"class_embed_type": "projection"}}, "class_embed_type 'projection'"),
        ({"unet": {"class_embed_type": "timestep"}}, "class labels or an image embedding"),
        ({"unet": {"num_class_embeds": 1000}}, "num_class_embeds 1000"),
        ({"unet": {"addition_embed_type": "text_time"}}, "Stable Diffusion XL"),
        ({"unet": {"addition_embed_type": "image"}}, "addition_embed_type 'image'"),
        ({"unet": {"encoder_hid_dim_type": "ip_image_proj"}}, "IP-Adapter"),
        ({"unet": {"encoder_hid_dim": 4096}}, "encoder_hid_dim 4096"),
        ({"unet": {"dual_cross_attention": True}}, "image beside the text"),
        ({"unet": {"in_channels": 9}}, "9 channels, its vae makes 4.*inpainting"),
        ({"unet": {"in_channels": 8}}, "8 channels.*InstructPix2Pix"),
        ({"unet": {"in_channels": 7}}, "7 channels.*upscaler"),
        ({"unet": {"in_channels": 5}}, "5 channels.*depth"),
        ({"unet": {"out_channels": 8}}, "predicts 8 channels from 4, so variances"),
        ({"unet": {"cross_attention_dim": 1024}}, "texts of width 1024, its text_encoder makes 64"),
        ({"unet": {"cross_attention_dim": [64, 64]}}, r"texts of width \[64, 64\]"),
        ({"vae": {"latent_channels": 16}}, "takes 4 channels, its vae makes 16"),
        ({"vae": {"out_channels": 1}}, "out_channels of its vae is 1"),
        ({"vae": {"shift_factor": 0.1159}}, "moves latents by shift_factor"),
        ({"vae": {"latents_mean": [0.1], "latents_std": [2.0]}}, "latents_mean, latents_std"),
        ({"vae": {"scaling_factor": 0}}, "scaling_factor of its vae is 0"),
        ({"index": {"vae": ["diffusers", "VQModel"]}}, "its vae is .*VQModel"),
        ({"index": {"unet": ["diffusers", "UNet2DModel"]}}, "its unet is .*UNet2DModel"),
        ({"index": {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "text_encoder_2"),
        ({"index": {"controlnet": ["diffusers", "ControlNetModel"]}}, "more than text.*controlnet"),
        ({"index": {"image_encoder": ["transformers", "CLIPVisionModel"]}}, "image_encoder"),
        ({"index": {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}}, "image_noising"),
    ],
)
def test_a_checkpoint_that_needs_more_than_text_is_refused(changes, words, tmp_path, refused):
    message = refused(copy_model(tmp_path / "model", **changes))
    assert re.search(words, message) and "\n" not in message, message


@pytest.mark.parametrize("resolution", [3, 30, 35])
def test_sides_that_no_latents_decode_to_are_refused(resolution, make_folder, tmp_path):
    photos = {"ant": ["1.png"], "bee": ["1.png"]}
    folder = make_folder("photos", {"train": photos, "test": photos})
    given = ["-d", str(folder), "--method", "img2img", "--resolution", str(resolution)]
    given += ["--output_dir", str(tmp_path / "out"), "--dry_run"]
    with pytest.raises(InputError, match=f"resolution {resolution}: give a multiple of 4"):
        expand.main([*given, "--pretrained_model_name_or_path", str(TINY_MODEL)])
    with pytest.raises(InputError, match="give a multiple of 8"):
        check_resolution("CompVis/stable-diffusion-v1-4", resolution)


@pytest.mark.parametrize("main", [expand.main, textual_inversion.main])
def test_a_revision_of_a_folder_on_this_disk_is_refused(main, make_folder, tmp_path):
    photos = {"ant": ["1.png"], "bee": ["1.png"]}
    folder = make_folder("photos", {"train": photos, "test": photos})
    given = ["-d", str(folder), "--output_dir", str(tmp_path / "out")]
    given += ["--pretrained_model_name_or_path", str(TINY_MODEL), "--revision", "v2"]
    with pytest.raises(InputError, match="--revision v2: .* lies on this disk"):
        main([*given, *(["--method", "img2img"] if main is expand.main else [])])


def test_a_safety_checker_and_a_feature_extractor_are_ignored(tmp_path, pipeline):
    index = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    folder = copy_model(tmp_path / "model", index=index)
    (folder / "safety_checker").mkdir()
    loaded = load_pipeline(str(folder))
    assert loaded.safety_checker is None and same_weights(loaded, pipeline)


@pytest.mark.parametrize(
    "variants",
    [
        {"unet": "fp16", "vae": "fp16", "text_encoder": "fp16"},
        {"unet": "fp16"},
        {"text_encoder": "fp16", "vae": "bf16"},
        {"unet": "non_ema"},
    ],
)
def test_variants_of_weights_are_loaded_where_the_plain_files_lack(variants, tmp_path, pipeline):
    folder = copy_model(tmp_path / "model")
    for part, variant in variants.items():
        as_variant(folder, part, variant)
        assert weight_variant(folder, part) == variant
    check_model_folder(str(folder))
    assert same_weights(load_pipeline(str(folder)), pipeline)


@pytest.mark.parametrize(
    ("part", "names", "index"),
    [
        ("unet", "{stem}-0000{n}-of-00002.safetensors", ""),
        ("unet", "{stem}.fp16-0000{n}-of-00002.safetensors", ".fp16"),
        ("unet", "{stem}-0000{n}-of-00002.fp16.safetensors", ".fp16"),  # before diffusers 0.32
        ("text_encoder", "{stem}-0000{n}-of-00002.safetensors", ""),
        ("text_encoder", "{stem}.fp16-0000{n}-of-00002.safetensors", ".fp16"),
    ],
)
def test_weights_in_shards_are_loaded(part, names, index, tmp_path, pipeline):
    folder, stem = copy_model(tmp_path / "model"), STEMS[part]
    first, second = (names.format(stem=stem, n=n) for n in (1, 2))
    in_shards(folder, part, (first, second), f"{stem}.safetensors.index{index}.json")
    check_model_folder(str(folder))
    assert len(weight_files(folder, part)) == 3
    assert same_weights(load_pipeline(str(folder)), pipeline)
    (folder / part / second).unlink()
    with pytest.raises(InputError, match=f"lacks {part}/{second}"):
        check_model_folder(str(folder))


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path):
    folder = copy_model(tmp_path / "model")
    in_shards(folder, "unet", ("a.safetensors", "b.safetensors"), "i.json")
    content = {"weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="which lies elsewhere"):
        check_model_folder(str(folder))


def test_a_checkpoints_identity_is_that_of_the_files_that_are_loaded(tmp_path):
    folder = copy_model(tmp_path / "model")
    before = model_fingerprint(str(folder))
    assert before == model_fingerprint(str(TINY_MODEL))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "vae" / weights.name, folder / "unet" / f"{weights.stem}.fp16.safetensors")
    assert model_fingerprint(str(folder)) == before  # beside the plain file a variant lies idle
    weights.unlink()
    other = model_fingerprint(str(folder))
    assert other != before
    shutil.copy(
        TINY_MODEL / "vae" / weights.name, folder / "unet" / f"{weights.stem}.fp16.safetensors"
    )
    as_variant(folder, "vae", "fp16")
    assert len({before, other, model_fingerprint(str(folder))}) == 3


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")],
)
def test_pickled_weights_are_named(part, name, tmp_path, refused):
    folder = copy_model(tmp_path / "model")
    path = next((folder / part).glob("*.safetensors"))
    path.rename(path.with_name(name))
    assert f"{name} is a pickle" in refused(folder)


def test_a_tiny_decoder_in_half_precision_is_loaded_and_decides_the_images(tmp_path, pipeline):
    channels = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    blocks = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
    decoder = AutoencoderTiny(**channels, **blocks, latent_channels=4)
    decoder.save_pretrained(tmp_path, variant="fp16")
    loaded = load_tiny_decoder(str(tmp_path), pipeline).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in decoder.state_dict().items())
    config = DistDiffConfig(encoder_weight_path="guide", guidance_decoder=str(tmp_path))
    assert config.input_files()["guidance_decoder"].endswith("model.fp16.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_loaded_with_the_configs_of_a_folder(suffix, tmp_path, pipeline):
    path = save_single_file(tmp_path / f"v1-5-pruned{suffix}", single_file_state())
    configs = copy_model(tmp_path / "configs")
    for weights in configs.glob("*/*.safetensors"):
        weights.unlink()
    loaded = load_pipeline(str(path), single_file_config=str(configs))
    assert same_weights(loaded, pipeline)
    assert dict(loaded.scheduler.config) == dict(pipeline.scheduler.config)


def test_images_of_a_single_file_are_those_of_its_folder(tmp_path, make_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = {"ant": ["1.png"], "bee": ["1.png"]}
    given = ["-d", str(make_folder("photos", {"train": classes, "test": classes}))]
    given += ["--method", "img2img", "--num_images_per_prompt", "1", "--num_inference_steps", "4"]
    path = save_single_file(Path("models/v1.safetensors"), single_file_state())
    config = ["--single_file_config", str(TINY_MODEL)]
    for model, more in ((str(path), config), (str(TINY_MODEL), [])):
        folder = ["--output_dir", f"out-{len(more)}", "--pretrained_model_name_or_path", model]
        assert expand.main([*given, *folder, *more]) == 0
    made = [sorted(Path(f"out-{n}").rglob("*_expand_0.png")) for n in (2, 0)]
    for ours, theirs in zip(*made, strict=True):
        assert pixels(ours) == pixels(theirs)
    parsed = expand.parse([*given, "--pretrained_model_name_or_path", str(path), *config])
    assert "32x32 pixels" in describe(make_plan(*parsed[:2]))


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize("name", ["{0}/v1-5.safetensors", "./v1-5.safetensors", "models/v1.ckpt"])
def test_a_single_file_without_configs_and_network_says_how(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_single_file(Path(name.format(tmp_path)), single_file_state())
    check_model_folder(name.format(tmp_path))
    with pytest.raises(InputError) as error:
        load_pipeline(str(path))
    for words in ("HF_HUB_OFFLINE", "--single_file_config FOLDER", "from_single_file", str(path)):
        assert words in str(error.value)


def without(*prefixes: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in single_file_state().items() if not k.startswith(prefixes)}


FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda: without("first_stage_model"), "lacks its autoencoder"),
        (lambda: without("cond_stage_model"), "lacks its text encoder"),
        (lambda: without("model."), "is no Stable Diffusion checkpoint in one file"),
        (lambda: {**single_file_state(), "conditioner.embedders.0.x": torch.ones(1)}, "XL"),
        (
            lambda: {**single_file_state(), "model.diffusion_model.label_emb.0.0.x": torch.ones(1)},
            "needs more than text",
        ),
        (lambda: {**single_file_state(), FIRST: torch.ones(48, 9, 3, 3)}, "9 channels.*inpaint"),
        (lambda: {"unet.to_q.lora.down.weight": torch.ones(1)}, "is a LoRA.*--lora"),
    ],
)
def test_a_single_file_of_another_kind_is_refused(state, words, tmp_path, refused):
    message = refused(save_single_file(tmp_path / "models" / "file.safetensors", state()))
    assert re.search(words, message), message


@pytest.mark.parametrize("configs", [None, str(TINY_MODEL)])
def test_a_pickle_that_would_run_code_is_not_read(configs, tmp_path):
    mark = tmp_path / "code-ran"

    class Evil:
        def __reduce__(self):
            return Path.mkdir, (mark,)

    torch.save({"state_dict": single_file_state() | {"x": Evil()}}, tmp_path / "v1.ckpt")
    with pytest.raises(InputError, match="holds more than tensors.*safetensors"):
        load_pipeline(str(tmp_path / "v1.ckpt"), single_file_config=configs)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.diffusion_model.middle_block.0.in_layers.0.weight", "lacks weights of a network"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "text_encoder lacks"),
    ],
)
def test_weights_that_a_single_file_lacks_are_not_drawn_at_random(key, words, tmp_path):
    path = save_single_file(tmp_path / "v1.safetensors", without(key))
    with pytest.raises(InputError, match=words):
        load_pipeline(str(path), single_file_config=str(TINY_MODEL))


def test_configs_of_a_single_file_are_checked_and_belong_to_its_identity(tmp_path, refused):
    path = save_single_file(tmp_path / "a" / "v1.safetensors", single_file_state())
    moved = tmp_path / "b.safetensors"
    shutil.copy(path, moved)
    assert model_fingerprint(str(path)) == model_fingerprint(str(moved))
    given = model_fingerprint(str(path), None, str(TINY_MODEL))
    other = copy_model(tmp_path / "other", scheduler={"beta_end": 0.013})
    assert (
        len({given, model_fingerprint(str(path)), model_fingerprint(str(path), None, str(other))})
        == 3
    )
    wrong = copy_model(tmp_path / "wrong", unet={"in_channels": 9})
    for folder, words in ((wrong, "inpainting"), (tmp_path, "has no model_index.json")):
        with pytest.raises(InputError, match=words):
            check_model_folder(str(path), str(folder))
    with pytest.raises(InputError, match="goes with a checkpoint in one file"):
        check_model_folder(str(TINY_MODEL), str(TINY_MODEL))


@pytest.mark.parametrize("name", ["models/v1.safetensors", "models/v1.ckpt", "~/v1", "./v1"])
def test_a_file_that_is_not_there_is_not_sought_on_a_hub(name, refused):
    assert "does not exist" in refused(name)
