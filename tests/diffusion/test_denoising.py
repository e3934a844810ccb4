"""img2img against diffusers' own pipeline, each method's cost, and images that are not finite."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from expansion.classifier.backbones import Classifier
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.encoding import LatentCodec
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.memory import FittingSampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.diffusion.variants import Drawing, sample_finite
from expansion.generation.loop import generate
from expansion.images.records import ImageRecord
from expansion.images.variants import Variant
from expansion.store.manifest import MadeWith
from expansion.store.writer import ExpansionWriter
from tests.conftest import TINY_MODEL

PROMPTS = [
    "a photo of the digit one",
    "a photo of the digit two",
    "a three",
    "a photo of the digit one",
]


def generators(count: int = 4, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + first + i) for i in range(count)]


def images(count: int = 2) -> torch.Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


def make_batch(rows: slice = slice(None)) -> Batch:
    """Two real images with two variants each, or some rows of it."""
    index = torch.tensor([0, 0, 1, 1])[rows]
    targets = torch.tensor([1, 2, 3, 1])[rows]
    return Batch(images(), ("a", "b"), index, PROMPTS[rows], targets, (7, 8))


def with_scheduler(pipeline, scheduler) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        **{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False
    )


def reference(
    pipeline, config: SamplerConfig, batch: Batch, drawn: list, scheduler=None
) -> torch.Tensor:
    """The same images from diffusers' img2img pipeline with DDIM, or another scheduler."""
    if scheduler is None:
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    parts = {**pipeline.components, "scheduler": scheduler}
    img2img = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    return img2img(
        prompt=list(batch.prompts),
        image=batch.images[batch.source_index],
        strength=config.strength,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        negative_prompt=[config.negative_prompt] * len(batch.prompts),
        generator=drawn,
        output_type="pt",
    ).images


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, scheduler_class",
    [("dpmsolver++", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)],
)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_other_solvers_equal_the_pipeline_of_diffusers(pipeline, solver, scheduler_class, strength):
    config = SamplerConfig(
        num_inference_steps=12, strength=strength, guidance_scale=3.0, solver=solver
    )
    sampler = Img2ImgSampler(pipeline, config)
    ours = sampler.sample(make_batch(), generators()).images
    again = sampler.sample(make_batch(), generators()).images
    ddim = Img2ImgSampler(pipeline, dataclasses.replace(config, solver="ddim"))
    scheduler = scheduler_class.from_config(ddim.denoiser.scheduler.config)
    theirs = reference(pipeline, config, make_batch(), generators(), scheduler)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert torch.equal(ours, again)  # the solver's memory of a batch does not reach the next
    assert (ours - ddim.sample(make_batch(), generators()).images).abs().max() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    "strength, guidance_scale, negative_prompt",
    [
        (0.3, 7.5, ""),
        (0.5, 3.0, "a photo of the digit nine"),
        (0.8, 1.0, ""),
        (0.8, 3.0, "blurred"),
    ],
)
def test_img2img_equals_the_pipeline_of_diffusers(
    pipeline, strength, guidance_scale, negative_prompt
):
    config = SamplerConfig(
        num_inference_steps=10,
        strength=strength,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
    )
    ours = Img2ImgSampler(pipeline, config).sample(make_batch(), generators()).images
    theirs = reference(pipeline, config, make_batch(), generators())
    assert ours.shape == (4, 3, 32, 32)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 0.05  # variants differ
    other = reference(pipeline, config, make_batch(), generators(first=9))
    assert (ours - other).abs().max() > 0.05  # and the noise decides them


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=0),
        DDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    ],
    ids=["v prediction", "PNDM", "Euler", "trailing", "zero terminal SNR", "no steps_offset"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_schedulers_of_other_checkpoints_are_handled_as_diffusers_does(pipeline, scheduler):
    other = with_scheduler(pipeline, scheduler)
    config = SamplerConfig(num_inference_steps=5, strength=1.0, guidance_scale=2.0)
    ours = Img2ImgSampler(other, config).sample(make_batch(), generators()).images
    torch.testing.assert_close(
        ours, reference(other, config, make_batch(), generators()), atol=1e-4, rtol=0
    )
    usual = Img2ImgSampler(pipeline, config).sample(make_batch(), generators()).images
    assert (ours - usual).abs().max() > 0.01  # so the scheduler's config mattered


@pytest.mark.slow
def test_batches_of_one_and_of_four_give_the_same_images(pipeline):
    sampler = Img2ImgSampler(pipeline, SamplerConfig(num_inference_steps=8, guidance_scale=3.0))
    together = sampler.sample(make_batch(), generators()).images
    alone = [sampler.sample(make_batch(slice(i, i + 1)), generators(1, i)).images for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "steps, strength, executed, first",
    [  # int((1 - 0.8) * 50) is 9 and int((1 - 0.9) * 50) is 4, one step too many
        (50, 0.2, 10, 181),
        (50, 0.5, 25, 481),
        (50, 0.8, 40, 781),
        (50, 0.9, 45, 881),
        (50, 1.0, 50, 981),
        (100, 0.8, 80, 791),
        (4, 0.5, 2, 251),
    ],
)
def test_the_last_share_of_the_schedule_is_executed(pipeline, steps, strength, executed, first):
    config = SamplerConfig(num_inference_steps=steps, strength=strength)
    stride = 1000 // steps
    assert Denoiser(pipeline, config).timesteps == list(range(first, 0, -stride))
    assert config.executed_steps == executed == len(range(first, 0, -stride))


def test_one_step_follows_the_ddim_equation_down_to_the_first_alpha(pipeline):
    """x_p = sqrt(a_p) x0hat + sqrt(1 - a_p) e, e = e_u + g (e_c - e_u); the last a_p is a[0]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - betas).cumprod(0).tolist()
    denoiser = Denoiser(pipeline, SamplerConfig(num_inference_steps=50, guidance_scale=4.0))

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, encoder_hidden_states):
            return SimpleNamespace(sample=encoder_hidden_states.expand_as(x))

    denoiser.unet = Constant()
    embeds = torch.tensor([0.5, 0.25]).view(
        2, 1, 1, 1
    )  # e_u, e_c: e = 0.5 + 4 * (0.25 - 0.5) = -0.5
    z = torch.full((1, 4, 8, 8), 2.0)
    for t, previous in ((481, 461), (1, 0)):
        latents, (x0hat,) = denoiser.run(z, [t], Conditioning(embeds))
        expected = (2.0 + 0.5 * math.sqrt(1 - a[t])) / math.sqrt(a[t])
        torch.testing.assert_close(x0hat, torch.full_like(z, expected), atol=1e-5, rtol=0)
        expected = math.sqrt(a[previous]) * expected - 0.5 * math.sqrt(1 - a[previous])
        torch.testing.assert_close(latents, torch.full_like(z, expected), atol=1e-5, rtol=0)


def test_a_real_image_is_encoded_once_and_alone(pipeline, calls_of):
    codec = LatentCodec(pipeline)
    encoded = calls_of(pipeline.vae.encoder)
    beside = codec.encode(make_batch(), generators())
    assert encoded == [1, 1]
    again = codec.encode(make_batch(), generators(first=50))
    assert encoded == [1, 1] and not torch.equal(beside, again)
    single = Batch(
        images()[1:], ("b",), torch.tensor([0, 0]), PROMPTS[2:], torch.tensor([3, 1]), (8,)
    )
    alone = LatentCodec(pipeline, max_sources=1).encode(single, generators(2, first=2))
    assert torch.equal(alone, beside[2:])
    small = LatentCodec(pipeline, max_sources=1)  # keeps one of the two
    assert torch.equal(small.encode(make_batch(), generators()), beside)


def test_every_distinct_text_is_embedded_once(pipeline, calls_of):
    embedded = calls_of(pipeline.text_encoder)
    sampler = Img2ImgSampler(pipeline, SamplerConfig(num_inference_steps=2, guidance_scale=3.0))
    for first in (0, 10):
        sampler.sample(make_batch(), generators(first=first))
    assert embedded == [1, 1, 1, 1]  # three prompts and the negative one


DISTDIFF = {"encoder_weight_path": "guide", "guidance_step": 4, "guidance_period": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, rows",
    [  # 5 of 10 steps are run
        ({"guidance_scale": 7.5}, 10),
        ({"guidance_scale": 1.0}, 5),
        ({"guidance_interval": (0.1, 0.3)}, 5 + 2),
        ({"guidance_interval": (0.0, 0.05)}, 5 + 1),
        ({**DISTDIFF, "guidance_interval": (0.0, 0.3)}, 5 + 3 + 2 + 1),
        (DISTDIFF, 10 + 4),
        ({**DISTDIFF, "log_energy": True}, 10 + 8),
        ({**DISTDIFF, "guidance_scale": 1.0, "guidance_period": 3}, 5 + 3),
        ({**DISTDIFF, "guidance_type": "direct_guidance"}, 10),
        ({**DISTDIFF, "optimize_targets": "none"}, 10),
    ],
)
def test_unet_rows_are_those_that_the_plan_announces(pipeline, calls_of, options, rows):
    options = {"num_inference_steps": 10, **options}
    if "encoder_weight_path" in options:
        config = DistDiffConfig(**options)
        guide = Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False)
        sampler = DistDiffSampler(pipeline, config, guide)
        sampler.use_prototypes(Prototypes(torch.rand(10, 128), torch.rand(10, 3, 128)))
    else:
        config = SamplerConfig(**options)
        sampler = Img2ImgSampler(pipeline, config)
    called = calls_of(pipeline.unet)
    sampler.sample(make_batch(), generators())
    assert sum(called) == 4 * rows
    assert config.unet_rows_per_image(4) == rows


def test_guidance_in_an_interval_equals_diffusers_with_guidance_switched_off(pipeline):
    """Of 10 steps the first six, the noisiest, are guided."""
    config = SamplerConfig(
        num_inference_steps=10, strength=1.0, guidance_scale=3.0, guidance_interval=(0.4, 1.0)
    )
    ours = Img2ImgSampler(pipeline, config).sample(make_batch(), generators()).images

    def switch_off(pipe, step, timestep, tensors):
        if step == 5:  # the pipeline then takes the prompt's rows alone
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    img2img = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    batch = make_batch()
    theirs = img2img(
        prompt=list(batch.prompts),
        image=batch.images[batch.source_index],
        strength=1.0,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=generators(),
        output_type="pt",
        callback_on_step_end=switch_off,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("interval", [(0.5,), (0.5, 0.5), (-0.1, 1.0), (0.2, 1.5), (0.8, 0.2)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(InputError, match="guidance_interval .*give two shares of the schedule"):
        SamplerConfig(guidance_interval=interval)


def test_an_interval_without_a_step_that_is_run_is_refused():
    with pytest.raises(InputError, match="guidance_interval 0.6 1.0 holds none of the 5 steps"):
        SamplerConfig(num_inference_steps=10, guidance_interval=(0.6, 1.0))


class NanSampler:
    """Draws one image per generator; NaN in the first one in the formats given."""

    config = SamplerConfig()

    def __init__(self, dtype: torch.dtype, nan_in: tuple[torch.dtype, ...]):
        vae = torch.nn.Linear(1, 1)
        self.pipeline = SimpleNamespace(unet=SimpleNamespace(dtype=dtype), vae=vae, to=self.convert)
        self.nan_in, self.seen = nan_in, []

    def convert(self, dtype):
        self.pipeline.unet.dtype = dtype

    def sample(self, batch, drawn):
        drawn_images = torch.stack([torch.rand(3, 8, 8, generator=g) for g in drawn])
        self.seen.append((self.pipeline.unet.dtype, drawn_images.clone()))
        if self.pipeline.unet.dtype in self.nan_in:
            drawn_images[0, 1, 2, 3] = math.nan
        return Samples(drawn_images)


def test_a_nan_in_16_bits_is_repeated_once_in_float32_with_the_same_noise():
    sampler = NanSampler(torch.float16, nan_in=(torch.float16,))
    samples = sample_finite(FittingSampler(sampler), make_batch(), generators)
    assert [dtype for dtype, _ in sampler.seen] == [torch.float16, torch.float32]
    assert torch.equal(sampler.seen[0][1], sampler.seen[1][1])
    assert torch.equal(samples.images, sampler.seen[1][1])
    assert sampler.pipeline.unet.dtype == torch.float16
    quiet = NanSampler(torch.float16, nan_in=())
    sample_finite(FittingSampler(quiet), make_batch(), generators)
    assert len(quiet.seen) == 1


@pytest.mark.slow
def test_a_real_sampler_survives_the_repetition_in_float32():
    half = load_pipeline(str(TINY_MODEL), "bfloat16")

    def spoil(module, inputs, output):
        if output.sample.dtype == torch.bfloat16:
            output.sample[0] = math.nan

    sampler = Img2ImgSampler(half, SamplerConfig(num_inference_steps=4, guidance_scale=2.0))
    hook = half.unet.register_forward_hook(spoil)
    repeated = sample_finite(FittingSampler(sampler), make_batch(), generators).images
    assert repeated.isfinite().all() and half.unet.dtype == torch.bfloat16
    hook.remove()
    plain = sample_finite(
        FittingSampler(sampler), make_batch(), generators
    ).images  # and goes on in 16 bits
    assert (repeated - plain).abs().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_image_that_stays_nan_is_counted_and_not_written(tmp_path, make_folder, dtype):
    root = make_folder("set", {"train": {"one": ["a.png", "b.png"]}})
    names = ["train/one/a.png", "train/one/b.png"]
    unit = [
        Variant(
            ImageRecord(root / name, name, 0, "one"), 0, f"one/{Path(name).stem}_expand_0.png", ""
        )
        for name in names
    ]
    drawing = Drawing(seed=1, resolution=8, resize_mode="center_crop")
    sampler = NanSampler(dtype, nan_in=(torch.float16, torch.float32))
    progress: list[int] = []
    with ExpansionWriter(tmp_path, MadeWith("stub", "stub", "0", 1)) as writer:
        outcome = generate(sampler, drawing, [unit], unit, writer, progress.append)
    assert (outcome.written, outcome.failed, progress) == (1, 1, [2])
    assert [p.name for p in tmp_path.glob("one/*")] == ["b_expand_0.png"]
