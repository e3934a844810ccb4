"""Distilled models: LCM, TCD and Turbo equal diffusers' pipelines, or are refused with reasons."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor

import expand
from baselines.bot import BoTSampler
from baselines.bot_config import BoTConfig
from baselines.da_fusion import DAFusionSampler
from baselines.da_fusion_config import DAFusionConfig
from baselines.text2img import Text2ImgSampler
from baselines.text2img_config import Text2ImgConfig
from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from dreamda.finetune import __main__ as finetune
from expansion.classifier.backbones import Classifier
from expansion.common.config import config_hash
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import Conditioning, guidance_embedding
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.lora import add_lora
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.solver_checks import check_steps, first_timestep
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.generation import run
from expansion.generation.identity import facts_of, identity_of
from expansion.generation.plan import make_plan
from tests.conftest import TINY_MODEL
from tests.helpers.tiny_checkpoints import (
    PROMPTS,
    SDXL_SCHEDULE,
    changed_copy,
    generators,
    make_batch,
    tiny_lcm,
)

pytestmark = [  # whole samplers and plans
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

TRAILING = {"timestep_spacing": "trailing", "_class_name": "EulerDiscreteScheduler"}


@pytest.fixture(scope="module")
def lcm_dir(tmp_path_factory) -> Path:
    return tiny_lcm(tmp_path_factory.mktemp("lcm"))


@pytest.fixture(scope="module")
def lcm(lcm_dir):
    return load_pipeline(str(lcm_dir))


@pytest.fixture(scope="module")
def turbo_dir(tmp_path_factory) -> Path:
    return changed_copy(TINY_MODEL, tmp_path_factory.mktemp("t") / "turbo", scheduler=TRAILING)


def of_diffusers(networks, pipeline_class, scheduler, **inputs) -> Tensor:
    """The images of a pipeline of diffusers on the same networks and with the same noise."""
    taken = inspect.signature(pipeline_class.__init__).parameters
    parts = {k: v for k, v in networks.components.items() if k in taken}
    extra = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    theirs = pipeline_class(**{**parts, "scheduler": scheduler, **extra})
    theirs.set_progress_bar_config(disable=True)
    drawn = {"generator": generators(), "output_type": "pt"}
    return theirs(prompt=PROMPTS, **inputs, **drawn).images


def real() -> Tensor:
    batch = make_batch()
    return batch.images[batch.source_index]


@pytest.mark.parametrize("guidance_scale", [1.0, 8.5])
def test_a_latent_consistency_model_equals_the_pipelines_of_diffusers(lcm, guidance_scale):
    """Their img2img counts the steps that are run; ours, as all others, those of the schedule."""
    scheduler = LCMScheduler(**SDXL_SCHEDULE)
    config = {"guidance_scale": guidance_scale}
    settings = SamplerConfig(num_inference_steps=8, strength=0.5, **config)
    ours = Img2ImgSampler(lcm, settings).sample(make_batch(), generators()).images
    img2img = LatentConsistencyModelImg2ImgPipeline
    steps = {"num_inference_steps": 4, "strength": 0.5}
    theirs = of_diffusers(lcm, img2img, scheduler, image=real(), **steps, **config)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    text2img = Text2ImgSampler(lcm, Text2ImgConfig(num_inference_steps=4, **config))
    ours = text2img.sample(make_batch(), generators()).images
    size = {"height": 32, "width": 32, "num_inference_steps": 4}
    theirs = of_diffusers(lcm, LatentConsistencyModelPipeline, scheduler, **size, **config)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_guidance_scale_is_an_input_that_matters_and_takes_no_row(lcm, lcm_dir, calls_of):
    calls = calls_of(lcm.unet)
    images = [
        Img2ImgSampler(lcm, SamplerConfig(num_inference_steps=4, guidance_scale=g))
        .sample(make_batch(), generators())
        .images
        for g in (1.0, 8.5)
    ]
    assert calls == [3, 3] * 2 and (images[0] - images[1]).abs().max() > 1e-3
    ours = guidance_embedding(torch.tensor([1.0, 7.5, 3.0]), 17)
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = theirs(None, torch.tensor([0.0, 6.5, 2.0]), embedding_dim=17)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)  # sines of angles up to 6500


def test_each_image_of_bot_has_its_own_guidance_scale_as_an_input(lcm):
    sampler = BoTSampler(lcm, BoTConfig(num_inference_steps=4, guidance_scale=5.0))
    made = sampler.sample(make_batch(), generators())
    scales = made.details["guidance_scale"].tolist()
    assert len(set(scales)) > 1
    for row, scale in enumerate(scales):
        config = BoTConfig(num_inference_steps=4, guidance_scale=scale)
        batch, generator = make_batch().part(row, row + 1), generators()[row : row + 1]
        alone = BoTSampler(lcm, config)
        latents, conditioning = alone.start(batch, generator)
        torch.randint(1, 6, (1,), generator=generator[0])  # its draw of the scale
        latents, _ = alone.denoiser.run(
            latents, alone.denoiser.timesteps, conditioning, generators=generator
        )
        image = alone.codec.decode(latents)[0]
        torch.testing.assert_close(image, made.images[row], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("solver", "family", "gamma", "guidance_scale"),
    [("lcm", "1.x", 0.3, 1.0), ("lcm", "XL", 0.3, 1.5), ("tcd", "1.x", 0.7, 1.0),
     ("tcd", "XL", 0.3, 1.0), ("tcd", "1.x", 0.0, 2.0)],
)  # fmt: skip
def test_adapted_models_equal_the_pipelines_of_diffusers(
    pipeline, sdxl, solver, family, gamma, guidance_scale
):
    """Any checkpoint, as it is after an LCM-, Hyper- or TCD-LoRA was added to its weights."""
    networks = pipeline if family == "1.x" else sdxl
    scheduler = (LCMScheduler if solver == "lcm" else TCDScheduler)(**SDXL_SCHEDULE)
    common = {"num_inference_steps": 6, "guidance_scale": guidance_scale}
    config = SamplerConfig(solver=solver, strength=0.7, tcd_gamma=gamma, **common)
    ours = Img2ImgSampler(networks, config).sample(make_batch(), generators()).images
    classes = {
        "1.x": (StableDiffusionImg2ImgPipeline, StableDiffusionPipeline),
        "XL": (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline),
    }[family]
    common |= {"eta": gamma}
    theirs = of_diffusers(networks, classes[0], scheduler, image=real(), strength=0.7, **common)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    config = Text2ImgConfig(**{**dataclasses.asdict(config), "strength": 1.0})
    ours = Text2ImgSampler(networks, config).sample(make_batch(), generators()).images
    theirs = of_diffusers(networks, classes[1], scheduler, height=32, width=32, **common)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("steps", "option"), [(1, True), (3, False), (4, True)])
def test_turbo_equals_the_pipelines_of_diffusers_with_euler(pipeline, turbo_dir, steps, option):
    """Trailing timesteps of the checkpoint, or as Lightning-LoRA has them, by the option."""
    networks = pipeline if option else load_pipeline(str(turbo_dir))
    spacing = {"timestep_spacing": "trailing"} if option else {}
    scheduler = EulerDiscreteScheduler(**SDXL_SCHEDULE, steps_offset=1, timestep_spacing="trailing")
    common = {"num_inference_steps": steps, "guidance_scale": 0.0}
    config = Text2ImgConfig(solver="euler", **spacing, **common)
    ours = Text2ImgSampler(networks, config).sample(make_batch(), generators()).images
    size = {"height": 32, "width": 32}
    theirs = of_diffusers(networks, StableDiffusionPipeline, scheduler, **size, **common)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    config = SamplerConfig(solver="euler", strength=1.0, **spacing, **common)
    ours = Img2ImgSampler(networks, config).sample(make_batch(), generators()).images
    img2img = StableDiffusionImg2ImgPipeline
    theirs = of_diffusers(networks, img2img, scheduler, image=real(), strength=1.0, **common)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("solver", "sampler_class"),
    [("lcm", Img2ImgSampler), ("tcd", DAFusionSampler), ("euler", DAFusionSampler)],
)
def test_an_image_depends_on_its_own_noise_alone(pipeline, solver, sampler_class):
    config_class = SamplerConfig if sampler_class is Img2ImgSampler else DAFusionConfig
    config = config_class(num_inference_steps=8, guidance_scale=1.0, solver=solver)
    sampler = sampler_class(pipeline, config)
    whole = sampler.sample(make_batch(), generators()).images
    alone = sampler.sample(make_batch().part(2, 3), generators()[2:]).images
    torch.testing.assert_close(whole[2:], alone, atol=2e-5, rtol=0)


def test_a_guidance_scale_below_1_is_none_for_a_network_that_takes_it():
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4), norm_num_groups=2, attention_head_dim=2, cross_attention_dim=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        time_cond_proj_dim=8,
    )  # fmt: skip
    scales = torch.tensor([-5.0, 0.0, 0.5, 1.0, 2.0])
    found = Conditioning(torch.zeros(5, 1, 1)).guided_by(scales, unet).timestep_cond
    assert all(torch.equal(row, found[3]) for row in found[:3]) and found[3].ne(found[4]).any()


@pytest.mark.parametrize("solver", ["lcm", "tcd"])
def test_the_first_timestep_is_where_the_scheduler_places_it(pipeline, solver):
    for steps in (1, 3, 4, 7, 50):
        for strength in (0.35, 0.5, 1.0):
            if int(steps * strength):
                config = SamplerConfig(num_inference_steps=steps, strength=strength, solver=solver)
                placed = Denoiser(pipeline, config).timesteps
                assert placed[0] == first_timestep({}, config)
                assert len(placed) == config.executed_steps
    with pytest.raises(InputError, match="some of the 50 steps of the distillation, so at most 50"):
        check_steps({}, SamplerConfig(num_inference_steps=51, solver=solver), "it")
    with pytest.raises(InputError, match="original_inference_steps 0 is no count"):
        check_steps({"original_inference_steps": 0}, SamplerConfig(solver=solver), "it")
    for scaling in ("x", 0, math.inf):
        with pytest.raises(InputError, match="timestep_scaling .* is no number above 0"):
            check_steps({"timestep_scaling": scaling}, SamplerConfig(solver=solver), "it")


@pytest.mark.parametrize(
    ("solver", "kind"), [("lcm", "transform_guidance"), ("tcd", "direct_guidance")]
)
def test_distdiff_looks_ahead_with_the_noise_that_the_window_draws(pipeline, solver, kind):
    """Without a step its look-ahead is the window itself, and its images are those of img2img."""
    torch.manual_seed(0)
    guide = Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False)
    steps = {"num_inference_steps": 8, "guidance_scale": 1.0, "solver": solver}
    still = {"rho": 0.0, "transform_start": "identity", "constraint_value": 9.0, "log_energy": True}
    if kind == "direct_guidance":
        still = {"rho": 0.0}
    window = {"encoder_weight_path": "guide", "guidance_step": 3, "guidance_type": kind}
    plain = Img2ImgSampler(pipeline, SamplerConfig(**steps)).sample(make_batch(), generators())
    for changes, moves in ((still, False), ({"rho": 1e3, "constraint_value": 0.5}, True)):
        sampler = DistDiffSampler(pipeline, DistDiffConfig(**steps, **window, **changes), guide)
        sampler.use_prototypes(Prototypes(torch.rand(10, 128), torch.rand(10, 3, 128)))
        made = sampler.sample(make_batch(), generators())
        assert ((made.images - plain.images).abs().max() > 0.01) == moves
    still_sampler = DistDiffSampler(pipeline, DistDiffConfig(**steps, **window, **still), guide)
    still_sampler.use_prototypes(Prototypes(torch.rand(10, 128), torch.rand(10, 3, 128)))
    figures = still_sampler.sample(make_batch(), generators()).details
    if kind == "transform_guidance":
        torch.testing.assert_close(figures["energy_start"], figures["energy_end"])
    assert not figures["update_skipped"].any()


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
