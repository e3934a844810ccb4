"""--lora: adapters are added to the checkpoint's weights and belong to the set's identity."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import expand
from expansion.common.config import config_hash
from expansion.common.errors import InputError
from expansion.diffusion.lora import add_lora, check_lora
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.generation.identity import identity_of
from expansion.generation.plan import make_plan
from tests.conftest import TINY_MODEL
from tests.helpers.checkpoint_stand_ins import copy_model

ONE, MAGNITUDE = torch.ones(1), "lora_magnitude_vector"
PHOTOS = {
    "train": {"ant": ["1.png"], "bee": ["1.png"]},
    "test": {"ant": ["1.png"], "bee": ["1.png"]},
}


def adapters(scale: float = 0.1, names: str = "unet.{}.lora.{}.weight", width: int = 0) -> dict:
    """Rank 2 for every query map of the U-Net, as diffusers' save_lora_weights names them."""
    draw = torch.Generator().manual_seed(3)
    state = {}
    for key, value in load_file(TINY_MODEL / "unet/diffusion_pytorch_model.safetensors").items():
        if key.endswith("to_q.weight"):
            layer, (rows, columns) = key.removesuffix(".weight"), value.shape
            state[names.format(layer, "down")] = torch.randn(2, columns + width, generator=draw)
            state[names.format(layer, "up")] = scale * torch.randn(rows, 2, generator=draw)
    return state


def save_adapters(
    folder: Path, state: dict, name: str = "pytorch_lora_weights.safetensors"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / name, {"format": "pt"})
    return folder


@pytest.fixture
def has_peft(monkeypatch):
    """Checks that need no peft, on a machine without it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: n if n == "peft" else find(n))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_adapters_are_added_to_the_weights_times_their_scale(tmp_path, scale):
    pytest.importorskip("peft")
    state = adapters()
    pipeline, plain = load_pipeline(str(TINY_MODEL)), load_pipeline(str(TINY_MODEL))
    add_lora(pipeline, str(save_adapters(tmp_path / "lora", state)), scale)
    changed, before = pipeline.unet.state_dict(), plain.unet.state_dict()
    assert list(changed) == list(before)  # nothing of peft stays in the network
    for key, value in before.items():
        down = state.get(f"unet.{key.removesuffix('.weight')}.lora.down.weight")
        up = state.get(f"unet.{key.removesuffix('.weight')}.lora.up.weight")
        added = 0 if down is None else scale * up @ down
        torch.testing.assert_close(changed[key], value + added, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in pipeline.unet.parameters())


def test_every_layer_has_its_own_rank_and_alpha(tmp_path):
    """A file with kohya's names, where a layer without an alpha has its rank for one."""
    pytest.importorskip("peft")
    state, added = {}, {}
    draw = torch.Generator().manual_seed(3)
    plain = load_pipeline(str(TINY_MODEL)).unet.state_dict()
    layers = [key for key in plain if key.endswith((".to_q.weight", ".to_k.weight"))]
    for number, key in enumerate(layers):
        rank, alpha = 1 + number % 2, (1.0, 2.0, 0.5, None)[number % 4]
        rows, columns = plain[key].shape
        down = torch.randn(rank, columns, generator=draw)
        up = 0.1 * torch.randn(rows, rank, generator=draw)
        name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
        added[key] = (alpha or rank) / rank * up @ down
    pipeline = load_pipeline(str(TINY_MODEL))
    add_lora(pipeline, str(save_adapters(tmp_path / "lora", state)), 0.5)
    changed = pipeline.unet.state_dict()
    for key, value in plain.items():
        expected = value + 0.5 * added.get(key, 0)
        torch.testing.assert_close(changed[key], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [
    lambda state, first: state.pop(first.replace("lora.down", "lora.up")),
    lambda state, first: state.pop(first),
    lambda state, first: state.update({first.replace("lora.down.weight", "dora_scale"): ONE}),
    lambda state, first: state.update({first.replace("lora.down.weight", MAGNITUDE): ONE}),
    lambda state, first: state.update({first.replace("lora.down", "hada_w1_a"): ONE}),
], ids=["no second factor", "no first factor", "kohya's DoRA", "peft's DoRA", "LoHa"])  # fmt: skip
def test_an_adapter_of_which_a_part_would_be_left_out_is_refused(tmp_path, has_peft, change):
    state = adapters()
    change(state, min(state))
    with pytest.raises(InputError, match="without its other factor|no plain LoRA"):
        check_lora(str(save_adapters(tmp_path / "lora", state)), str(TINY_MODEL))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (adapters(width=3), "cannot add --lora"),
        (adapters(names="unet.other.{}.lora.{}.weight"), "cannot add --lora"),
        (
            {**adapters(), "text_encoder.nowhere.lora.down.weight": torch.zeros(2, 8),
             "text_encoder.nowhere.lora.up.weight": torch.zeros(8, 2)},
            "cannot add --lora",
        ),
    ],
    ids=["other widths", "other layers", "a text encoder's layer too many"],
)  # fmt: skip
def test_adapters_of_another_network_are_refused_and_not_left_out(tmp_path, state, words):
    pytest.importorskip("peft")
    with pytest.raises(InputError, match=words):
        add_lora(load_pipeline(str(TINY_MODEL)), str(save_adapters(tmp_path / "lora", state)), 1.0)


def test_expand_uses_adapters_and_they_change_the_images(tmp_path, make_folder, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    arguments = [*options(make_folder), "--num_images_per_prompt", "1"]
    lora = str(save_adapters(tmp_path / "lora", adapters()))
    expand.main([*arguments, "--output_dir", "plain"])
    expand.main([*arguments, "--output_dir", "adapted", "--lora", lora])
    with pytest.raises(InputError, match="lora: "):
        expand.main([*arguments, "--output_dir", "plain", "--lora", lora])
    plain, adapted = (
        sorted((tmp_path / folder).glob("**/*_expand_0.png")) for folder in ("plain", "adapted")
    )
    assert len(plain) == len(adapted) == 2
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(plain, adapted, strict=True))


def options(make_folder) -> list[str]:
    folder = make_folder("photos", PHOTOS)
    steps = ["--num_inference_steps", "4", "--method", "img2img"]
    return ["-d", str(folder), "--pretrained_model_name_or_path", str(TINY_MODEL), *steps]


def test_adapters_belong_to_the_identity_by_content_and_scale(tmp_path, make_folder, has_peft):
    given = options(make_folder)

    def identity(*more: str) -> str:
        config, method_config, _ = expand.parse([*given, *more])
        return config_hash(identity_of(make_plan(config, method_config), "float32"))

    first = save_adapters(tmp_path / "first", adapters())
    same = save_adapters(tmp_path / "same", adapters(), "sd_flowers.safetensors")
    other = save_adapters(tmp_path / "other", adapters(scale=0.2))
    base = identity("--lora", str(first))
    assert (
        base
        == identity("--lora", str(same))
        == identity("--lora", str(same / "sd_flowers.safetensors"))
    )
    assert len({base, identity(), identity("--lora", str(other))}) == 3
    assert base != identity("--lora", str(first), "--lora_scale", "0.5")


def test_adapters_without_peft_are_refused_in_the_plan(tmp_path, make_folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "peft" else find(n))
    lora = str(save_adapters(tmp_path / "lora", adapters()))
    with pytest.raises(InputError, match="needs the package peft: pip install peft"):
        expand.main([*options(make_folder), "--dry_run", "--lora", lora])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "--lora .*nowhere does not exist"),
        ("empty", "holds no pytorch_lora_weights.safetensors"),
        ("text.txt", "is no safetensors file"),
        ("broken.safetensors", "is no safetensors file, or is damaged"),
        ("unet.safetensors", "holds no LoRA in diffusers' format"),
        ("peft.safetensors", "holds no LoRA in diffusers' format"),
        ("tuned", "lies in the checkpoint"),
    ],
)
def test_what_is_no_lora_is_named(tmp_path, name, words, has_peft):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    shutil.copy(
        TINY_MODEL / "unet/diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors"
    )
    save_adapters(
        tmp_path, adapters(names="base_model.model.{}.lora_{}.weight"), "peft.safetensors"
    )
    tuned = save_adapters(copy_model(tmp_path / "tuned"), adapters())
    with pytest.raises(InputError, match=words):
        check_lora(str(tmp_path / name), str(tuned))


@pytest.mark.parametrize("file_name", ["", "pytorch_lora_weights.safetensors"])
def test_a_lora_given_as_the_model_is_told_to_be_one(tmp_path, make_folder, file_name):
    lora = save_adapters(tmp_path / "flowers-lora", adapters())
    (lora / "checkpoint-500").mkdir()
    given = options(make_folder)
    given[given.index("--pretrained_model_name_or_path") + 1] = str(lora / file_name)
    with pytest.raises(InputError, match="LoRA.*--lora"):
        expand.main([*given, "--dry_run"])


def test_a_scale_without_adapters_is_refused(make_folder):
    with pytest.raises(InputError, match="lora_scale 0.5"):
        expand.parse([*options(make_folder), "--lora_scale", "0.5"])


def test_what_fine_tuning_writes_gives_the_fine_tuned_checkpoint(tmp_path, digits_dir, monkeypatch):
    pytest.importorskip("peft")
    from dreamda.finetune import __main__ as finetune

    monkeypatch.setattr(finetune, "_save_samples", lambda *_: None)
    out = tmp_path / "tuned"
    command = f"-d digits --data_dir {digits_dir} --shots 2 --output_dir {out} "
    command += "--lora_rank 2 --lora_alpha 6 "
    command += f"--pretrained_model_name_or_path {TINY_MODEL} --max_train_steps 3 "
    finetune.main([*command.split(), "--learning_rate", "0.01", "--save_dtype", "float32"])
    pipeline, tuned = load_pipeline(str(TINY_MODEL)), load_pipeline(str(out))
    alone = shutil.copy(out / "pytorch_lora_weights.safetensors", tmp_path / "flowers.safetensors")
    add_lora(pipeline, alone, 1.0)
    ours, theirs = pipeline.unet.state_dict(), tuned.unet.state_dict()
    assert sorted(ours) == sorted(theirs)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in ours)
