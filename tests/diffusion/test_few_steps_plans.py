"""Models of few steps in expand.py: what is refused, warned of and part of a set's identity."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import expand
from dreamda.finetune import __main__ as finetune
from expansion.common.config import config_hash
from expansion.common.errors import InputError
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.lora import add_lora
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.generation import run
from expansion.generation.identity import facts_of, identity_of
from expansion.generation.plan import make_plan
from tests.conftest import TINY_MODEL
from tests.helpers.tiny_checkpoints import (
    changed_copy,
)

pytestmark = [  # whole samplers and plans
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


@pytest.fixture
def plan_of(make_folder, tmp_path):
    """Function from options of expand.py to the plan of a run on four photos."""
    classes = {"ant": ["1.png", "2.png"], "bee": ["1.png", "2.png"]}
    photos = make_folder("photos", {"train": classes, "test": classes})

    def plan(model: Path, options: str):
        given = ["-d", str(photos), "--pretrained_model_name_or_path", str(model)]
        given += ["--output_dir", str(tmp_path / "out"), *options.split()]
        return make_plan(*expand.parse(given)[:2])

    return plan


def test_a_folder_s_own_scheduler_decides_unless_a_solver_is_given(plan_of, lcm_dir, tmp_path):
    tcd = {"_class_name": "TCDScheduler"}
    tcd_dir = changed_copy(TINY_MODEL, tmp_path / "tcd", scheduler=tcd)
    solvers = {
        plan_of(folder, f"--method img2img {options}").method_config.solver
        for folder, options in ((lcm_dir, ""), (tcd_dir, "--guidance_scale 1"), (TINY_MODEL, ""))
    }
    assert solvers == {"lcm", "tcd", "ddim"}
    assert plan_of(lcm_dir, "--method img2img --solver ddim").method_config.solver == "ddim"
    assert Denoiser(load_pipeline(str(tcd_dir)), SamplerConfig()).config.solver == "tcd"


def test_dreamda_refuses_a_distilled_model_and_says_why(plan_of, lcm_dir):
    words = "solver lcm: the inversion is one of ddim's steps; .* that it was distilled from"
    with pytest.raises(InputError, match=words):
        plan_of(lcm_dir, "--method dreamda")


def test_a_distilled_model_is_not_trained_on(lcm_dir, digits_dir, tmp_path):
    given = ["-d", "digits", "--data_dir", str(digits_dir), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="was distilled .* train adapters on the checkpoint that"):
        finetune.main([*given, "--pretrained_model_name_or_path", str(lcm_dir)])


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("turbo", "", "scheduler of a Turbo model.*give --guidance_scale 1, --solver euler"),
        ("turbo", "--guidance_scale 1", None),
        ("plain", "--solver lcm --num_inference_steps 4", "spoils .*give --guidance_scale 1, or"),
        ("plain", "--solver tcd --num_inference_steps 4 --guidance_scale 2", None),
        ("lcm", "--num_inference_steps 4", None),
        ("lcm", "", "num_inference_steps 50 at strength 0.5: 25 steps are run where .* give fewer"),
        ("plain", "", None),
    ],
)
def test_guidance_that_spoils_images_and_needless_steps_are_warned_of(
    plan_of, turbo_dir, lcm_dir, caplog, model, options, words
):
    folder = {"turbo": turbo_dir, "lcm": lcm_dir, "plain": TINY_MODEL}[model]
    plan_of(folder, f"--method img2img {options}")
    told = [r.getMessage() for r in caplog.records if r.name.endswith("model_files")]
    assert len(told) == (words is not None) and all(re.search(words, line) for line in told)


def test_what_a_plan_cannot_know_of_a_hub_id_is_warned_of_after_loading(
    plan_of, lcm, monkeypatch, caplog
):
    plan = dataclasses.replace(plan_of(TINY_MODEL, "--method img2img"), model="owner/lcm")
    monkeypatch.setattr("expansion.diffusion.stable_diffusion.load_pipeline", lambda *_: lcm)
    run._build_sampler(plan, Img2ImgSampler, "cpu", "float32")
    assert "solver ddim: owner/lcm has the scheduler LCMScheduler" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--negative_prompt blurred", "negative_prompt: the U-Net of .* takes? the guidance scale"),
        ("--guidance_interval 0.2 0.8", "guidance_interval: the U-Net"),
        ("--timestep_spacing trailing", "the solver lcm has timesteps of its own"),
        ("--tcd_gamma 0.5", "tcd_gamma 0.5 is a setting of the solver tcd, not of lcm"),
        ("--num_inference_steps 60", "some of the 50 steps of the distillation"),
    ],
)
def test_settings_that_a_consistency_model_has_no_use_for_are_refused(
    plan_of, lcm_dir, options, words
):
    steps = "" if "steps" in options else "--num_inference_steps 4"
    with pytest.raises(InputError, match=words.replace("takes? the", "distilled to take the")):
        plan_of(lcm_dir, f"--method img2img {steps} {options}")


def test_solver_spacing_and_noise_belong_to_the_identity_and_old_sets_stay_valid(plan_of):
    def identity(options: str) -> dict:
        return identity_of(plan_of(TINY_MODEL, f"--method img2img {options}"), "float32")

    old = identity("")
    assert old["settings"]["solver"] == "ddim"
    assert not {"tcd_gamma", "timestep_spacing"} & set(old["settings"])
    assert identity("--solver ddim") == old
    options = ["", "--solver euler", "--solver lcm", "--solver tcd", "--solver tcd --tcd_gamma 0"]
    options += ["--timestep_spacing trailing", "--solver euler --timestep_spacing trailing"]
    assert len({config_hash(identity(each)) for each in options}) == len(options)


def test_the_cost_of_a_set_counts_no_row_for_guidance_that_is_an_input(plan_of, lcm_dir):
    plan = plan_of(lcm_dir, "--method img2img --num_inference_steps 8 --strength 0.5")
    assert facts_of(plan)["unet_rows_per_image"] == 4
    plan = plan_of(TINY_MODEL, "--method img2img --num_inference_steps 8 --strength 0.5")
    assert facts_of(plan)["unet_rows_per_image"] == 8


def test_an_lcm_lora_of_all_kinds_of_layers_is_added_and_identifies_the_set(plan_of, tmp_path):
    """Maps, convolutions and time embeddings, as LCM-LoRA and Lightning-LoRA have them."""
    pytest.importorskip("peft")
    plain, adapted = load_pipeline(str(TINY_MODEL)), load_pipeline(str(TINY_MODEL))
    draw, state, wanted = torch.Generator().manual_seed(1), {}, {}
    for key, value in plain.unet.state_dict().items():
        if re.search(r"(conv1|proj_in|time_emb_proj|to_q|net.0.proj|conv)\.weight$", key):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            down = 0.1 * torch.randn(2, *value.shape[1:], generator=draw)
            up = 0.1 * torch.randn(len(value), 2, *[1] * (value.dim() - 2), generator=draw)
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            state |= {f"{name}.alpha": torch.tensor(1.0)}  # half of the rank
            added = up.flatten(1) @ down.flatten(1)
            wanted[key] = value + 0.5 * added.view_as(value)
    save_file(state, tmp_path / "lcm-lora.safetensors", {"format": "pt"})
    add_lora(adapted, str(tmp_path / "lcm-lora.safetensors"), 1.0)
    assert len(wanted) > 10
    for key, value in adapted.unet.state_dict().items():
        expected = wanted.get(key, plain.unet.state_dict()[key])
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    options = "--method img2img --solver lcm --num_inference_steps 4 --guidance_scale 1"
    adding = f"--lora {tmp_path}/lcm-lora.safetensors"
    plans = [plan_of(TINY_MODEL, f"{options} {more}") for more in ("", adding)]
    identities = [identity_of(plan, "float32") for plan in plans]
    assert identities[1].pop("lora") and identities[1].pop("lora_scale") == 1
    assert identities[0] == identities[1]


def test_expand_makes_a_set_with_an_lcm(lcm_dir, make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = {"ant": ["1.png"], "bee": ["1.png"]}
    photos = make_folder("photos", {"train": classes, "test": classes})
    given = ["-d", str(photos), "--method", "img2img", "--num_inference_steps", "4"]
    given += ["--pretrained_model_name_or_path", str(lcm_dir), "--num_images_per_prompt", "2"]
    assert expand.main([*given, "--output_dir", "a", "--batch_size", "4"]) == 0
    assert expand.main([*given, "--output_dir", "b", "--batch_size", "1"]) == 0
    made = [sorted(Path(folder).rglob("*_expand_*.png")) for folder in "ab"]
    assert [p.read_bytes() for p in made[0]] == [p.read_bytes() for p in made[1]]
    row = json.loads(Path("a/metadata.jsonl").read_text().splitlines()[0])
    assert row["method"] == "img2img" and len(made[0]) == 4
