"""Distilled models: LCM, TCD and Turbo equal diffusers' pipelines, or are refused with reasons."""

from __future__ import annotations

import dataclasses
import inspect
import math

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
from torch import Tensor

from baselines.bot import BoTSampler
from baselines.bot_config import BoTConfig
from baselines.da_fusion import DAFusionSampler
from baselines.da_fusion_config import DAFusionConfig
from baselines.text2img import Text2ImgSampler
from baselines.text2img_config import Text2ImgConfig
from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from expansion.classifier.backbones import Classifier
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import Conditioning, guidance_embedding
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.solver_checks import check_steps, first_timestep
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.helpers.tiny_checkpoints import (
    PROMPTS,
    SDXL_SCHEDULE,
    generators,
    make_batch,
)

pytestmark = [  # whole samplers and plans
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


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
    strong = {"rho": 1e3, "constraint_value": 0.5}
    if kind == "direct_guidance":
        still, strong = {"rho": 0.0}, {"rho": 1e3}
    window = {"encoder_weight_path": "guide", "guidance_step": 3, "guidance_type": kind}
    plain = Img2ImgSampler(pipeline, SamplerConfig(**steps)).sample(make_batch(), generators())
    for changes, moves in ((still, False), (strong, True)):
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
