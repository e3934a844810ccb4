"""Inversion: coefficients by hand, round trips, and diffusers' own functions as oracles."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.pipelines.deprecated.stable_diffusion_variants import pipeline_cycle_diffusion

from dreamda.inversion import (
    ReverseProcess,
    cycle_inversion,
    ddim_inversion,
    encode_trajectory,
)
from expansion.common.errors import InputError
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.sampler_config import SamplerConfig

SD = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
NO_NETWORK = SimpleNamespace(config={})
SCHEDULES = {
    "SD": SD,
    "v prediction": {**SD, "prediction_type": "v_prediction"},
    "final alpha one": {**SD, "set_alpha_to_one": True},
    "trailing": {**SD, "timestep_spacing": "trailing"},
    "zero terminal SNR": {
        **SD,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}


def denoiser(steps: int = 100, strength: float = 0.8, **schedule) -> Denoiser:
    pipeline = SimpleNamespace(
        unet=NO_NETWORK, device="cpu", scheduler=DDIMScheduler(**{**SD, **schedule})
    )
    return Denoiser(pipeline, SamplerConfig(num_inference_steps=steps, strength=strength))


def latents(seed: int = 3, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 11) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predict(rows: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """A stand-in for a U-Net: about what is optimal for Gaussian data, not linear, no symmetry."""
    level = (timesteps.float() / 1000).sqrt()[:, None, None, None]
    return level * rows + 0.1 * torch.tanh(3 * rows.flip(1)) + 0.2 * torch.sin(20 * level)


def decode(process: ReverseProcess, inversion) -> torch.Tensor:
    x = inversion.start
    for i in range(len(process)):
        prediction = predict(x, process.timesteps[i : i + 1])
        x = process.mean(i, *process.split(i, x, prediction)) + inversion.corrections[i]
    return x


def test_the_first_of_80_steps_by_hand():
    process = ReverseProcess(denoiser(), eta=0.5)
    betas = [
        (math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2
        for i in range(1000)
    ]
    a_t, a_p = (math.prod(1 - b for b in betas[: t + 1]) for t in (791, 781))
    sigma2 = 0.25 * (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    assert (len(process), process.timesteps[0].item(), process.previous[0]) == (80, 791, 781)
    assert a_t == pytest.approx(0.040, abs=5e-4)  # METHODS: the start of 80 steps
    x, e = 0.7, -0.3
    x0 = (x - math.sqrt(1 - a_t) * e) / math.sqrt(a_t)
    split = process.split(0, torch.tensor([[[[x]]]]), torch.tensor([[[[e]]]]))
    assert [value.item() for value in split] == pytest.approx([x0, e], abs=1e-5)
    expected = math.sqrt(a_p) * 0.4 + math.sqrt(1 - a_p - sigma2) * 0.9
    assert process.mean(0, torch.tensor(0.4), torch.tensor(0.9)).item() == pytest.approx(expected)
    assert process.sigma[0].item() == pytest.approx(math.sqrt(sigma2))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("eta, strength", [(1.0, 0.8), (0.3, 0.8), (1.0, 0.2), (1.0, 1.0)])
def test_a_cycle_inversion_leads_back_to_the_image(schedule, eta, strength):
    process = ReverseProcess(denoiser(strength=strength, **schedule), eta)
    inversion = cycle_inversion(process, latents(), predict, generator())
    assert inversion.corrections.shape == (round(100 * strength), 4, 8, 8)
    torch.testing.assert_close(decode(process, inversion), latents(), atol=1e-5, rtol=0)
    assert (inversion.start - latents()).abs().mean() > 0.1


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_trajectory_and_noises_are_those_of_diffusers(eta):
    source, x0 = denoiser(), latents()
    process = ReverseProcess(source, eta)
    inversion = cycle_inversion(process, x0, predict, generator())
    trajectory = encode_trajectory(process, x0, generator())

    drawn, scheduler = generator(), source.scheduler
    x = source.add_noise(x0, torch.randn(x0.shape, generator=drawn))
    torch.testing.assert_close(inversion.start, x)
    for i, t in enumerate(source.timesteps):
        torch.testing.assert_close(trajectory[i : i + 1], x, atol=1e-5, rtol=0)
        before = pipeline_cycle_diffusion.posterior_sample(scheduler, x, t, x0, drawn, eta)
        prediction = predict(x, torch.tensor([t]))
        z = pipeline_cycle_diffusion.compute_noise(scheduler, before, x, t, prediction, eta)
        expected = process.sigma[i] * z[0]
        torch.testing.assert_close(inversion.corrections[i], expected, atol=2e-5, rtol=0)
        x = before
    assert torch.equal(trajectory[-1:], x0)


def test_corrections_are_about_standard_normal_in_units_of_sigma():
    """METHODS 2.1: with the true noise as prediction z has std 1 but for the last steps."""
    process = ReverseProcess(denoiser(), eta=1.0)
    x0 = latents()
    noisy = encode_trajectory(process, x0, generator())[:-1]

    def perfect(rows: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return (rows - process.sqrt_alpha * x0) / process.sqrt_noise

    inversion = cycle_inversion(process, x0, perfect, generator())
    assert torch.equal(inversion.start, noisy[:1])
    z = inversion.corrections[:-1] / process.sigma[:-1]
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert z.flatten(1).std(dim=1).min() > 0.8


def test_the_steps_of_a_cycle_inversion_are_predicted_in_one_call():
    calls = []

    def counting(rows, timesteps):
        calls.append(timesteps.tolist())
        return predict(rows, timesteps)

    process = ReverseProcess(denoiser(), eta=1.0)
    cycle_inversion(process, latents(), counting, generator())
    assert calls == [list(range(791, 0, -10))]


@pytest.mark.parametrize("name", ["SD", "v prediction", "trailing"])
def test_ddim_inversion_equals_the_inverse_scheduler_of_diffusers(name):
    source = denoiser(strength=1.0, **SCHEDULES[name])
    inverse = DDIMInverseScheduler.from_config(source.scheduler.config)
    inverse.set_timesteps(100)
    x = latents()
    for t in inverse.timesteps:
        x = inverse.step(predict(x, t[None]), t, x).prev_sample
    process = ReverseProcess(source, eta=0.0)
    inversion = ddim_inversion(process, latents(), predict)
    assert sorted(source.timesteps) == inverse.timesteps.tolist()
    torch.testing.assert_close(inversion.start, x, atol=1e-4, rtol=1e-4)
    assert inversion.corrections.shape == (100, 4, 8, 8) and not inversion.corrections.any()


def test_ddim_inversion_is_exact_where_the_prediction_ignores_the_latents():
    def constant(rows, timesteps):
        return torch.sin(timesteps.float())[:, None, None, None].expand_as(rows)

    process = ReverseProcess(denoiser(), eta=0.0)
    inversion = ddim_inversion(process, latents(), constant)
    x = inversion.start
    for i in range(len(process)):
        x = process.mean(i, *process.split(i, x, constant(x, process.timesteps[i : i + 1])))
    torch.testing.assert_close(x, latents(), atol=1e-4, rtol=0)


def test_a_schedule_that_starts_from_pure_noise_is_refused_if_the_noise_is_predicted():
    schedule = {**SCHEDULES["zero terminal SNR"], "prediction_type": "epsilon"}
    with pytest.raises(InputError, match="zero terminal SNR.*lower --strength"):
        ReverseProcess(denoiser(strength=1.0, **schedule), eta=1.0)
    ReverseProcess(denoiser(strength=0.8, **schedule), eta=1.0)


@pytest.mark.parametrize("steps", [3, 4])
def test_the_few_trailing_steps_of_a_turbo_model_lead_back_to_the_real_image(steps):
    few = denoiser(steps, 1.0, timestep_spacing="trailing")
    process = ReverseProcess(few, 1.0)
    x0 = latents()
    inversion = cycle_inversion(process, x0, predict, generator())
    x = inversion.start
    for i, timestep in enumerate(few.timesteps):
        prediction = predict(x, torch.tensor([timestep]))
        x = process.mean(i, *process.split(i, x, prediction)) + inversion.corrections[i : i + 1]
    assert len(few.timesteps) == steps and few.timesteps[0] == 999
    torch.testing.assert_close(x, x0, atol=1e-3, rtol=0)
