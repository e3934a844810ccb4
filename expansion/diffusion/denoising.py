"""Classifier-free guided denoising of latents; differentiable where gradients are enabled.

The arithmetic of a step is that of diffusers' `DDIMScheduler` or another solver of `SOLVERS`, in
float32 (epsilon or v prediction); only the U-Net runs in its own dtype.
Symbols: e_u and e_c are the U-Net's predictions without and with the prompt, g the guidance scale;
a_t is the cumulative alpha-bar; x0hat is the predicted clean image, `pred_original_sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    SchedulerMixin,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from expansion.common.phases import phase
from expansion.diffusion.conditioning import Conditioning, embeds_guidance
from expansion.diffusion.families import Pipeline
from expansion.diffusion.feature_cache import FeatureCache
from expansion.diffusion.model_configs import noise_schedule
from expansion.diffusion.sampler_config import CONSISTENCY, STATELESS, SamplerConfig
from expansion.diffusion.solver_checks import check_guidance, check_steps
from expansion.diffusion.stable_diffusion import ddim_scheduler, own_scheduler, weight_dtype

# Settings of the published second-order solvers in their deterministic data-prediction form, where
# x0hat is in `model_outputs`. With the model's noise schedule they decide a step completely.
SECOND_ORDER = {
    "steps_offset": 1,
    "solver_order": 2,
    "thresholding": False,
    "lower_order_final": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "final_sigmas_type": "zero",
}
DPMSOLVER = {
    **SECOND_ORDER,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
}
UNIPC = {**SECOND_ORDER, "predict_x0": True, "solver_type": "bh2", "disable_corrector": []}
# What a scheduler's config says of the distillation, and what the consistency solvers leave as is.
DISTILLATION = ("original_inference_steps", "timestep_scaling")
CONSISTENCY_STEP = {"clip_sample": False, "thresholding": False, "steps_offset": 0}


class Denoiser:
    """Runs stretches of the reverse process of one checkpoint.

    Args:
        pipeline: Gives the U-Net, and its scheduler the noise schedule.
        config: Number of steps, strength, solver and guidance scale.

    Attributes:
        timesteps: The steps that are run, as training timesteps, the noisiest first.
        all_timesteps: Those of the whole schedule, of which `strength` decides the share.

    Raises:
        InputError: These steps cannot be taken on the checkpoint's noise schedule.
    """

    def __init__(self, pipeline: Pipeline, config: SamplerConfig):
        own = own_scheduler(pipeline)
        self.unet = pipeline.unet
        self.cache = FeatureCache(pipeline.unet, config.cache_interval)
        self.config = config = config.on_checkpoint(own)
        self.scheduler = _scheduler(pipeline, config)
        self.distillation = {key: own[key] for key in DISTILLATION if key in own}
        schedule = {**self.distillation, **self.scheduler.config}
        check_steps(schedule, config, "this checkpoint")
        check_guidance(self.unet.config, config, "this checkpoint")
        self.all_timesteps: list[int] = self._new_solver().timesteps.tolist()
        self.timesteps = self.all_timesteps[-config.executed_steps :]
        # The places of `is_guided` count from the cleanest step.
        places = enumerate(reversed(self.all_timesteps))
        self._guided = {timestep for place, timestep in places if config.is_guided(place)}
        if embeds_guidance(self.unet):
            self._guided.clear()
        placed = torch.tensor(self.all_timesteps, device=pipeline.device)
        # Copied to the device once: a copy in every step would wait for all work in the queue.
        self._on_device = dict(zip(self.all_timesteps, placed, strict=True))

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Bring latents to the first executed step: sqrt(a_t) z_0 + sqrt(1 - a_t) noise.

        Args:
            latents: z_0, (B, 4, h, w), VAE-scaled.
            noise: Standard normal, same shape.
        """
        return self.scheduler.add_noise(latents, noise, torch.tensor(self.timesteps[:1]))

    def start(self, noise: Tensor) -> Tensor:
        """Where the whole schedule starts: the noise itself, (B, 4, h, w), but for euler.

        Where timesteps are trailing, Euler's first latents are as noisy as its first timestep says,
        sqrt(1 - a_t) noise.

        Args:
            noise: Standard normal, (B, 4, h, w).
        """
        if self.config.solver != "euler" or self.scheduler.config.timestep_spacing == "leading":
            return noise
        return self.add_noise(torch.zeros_like(noise), noise)

    def predict(
        self,
        latents: Tensor,
        timestep: int,
        conditioning: Conditioning,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """The guided prediction e_u + g (e_c - e_u), (B, 4, h, w), float32.

        Args:
            latents: (B, 4, h, w), float32.
            timestep: Training timestep, one of `all_timesteps`.
            conditioning: 2B rows, those of the negative prompt first; B rows without guidance.
            guidance_scale: g of each sample, (B,); default: the config's.
        """
        if guidance_scale is not None and embeds_guidance(self.unet):
            conditioning = conditioning.guided_by(guidance_scale, self.unet)
        rows, conditioning = self.rows(latents, timestep, conditioning)
        return self.guide(self.unet_rows(rows, timestep, conditioning), timestep, guidance_scale)

    def rows(
        self, latents: Tensor, timestep: int, conditioning: Conditioning
    ) -> tuple[Tensor, Conditioning]:
        """What `unet_rows` takes at a step: all rows twice if guided, else the prompt's alone.

        Args:
            latents: (B, 4, h, w).
            timestep: One of `all_timesteps`.
            conditioning: As in `predict`.

        Returns:
            Latents (2B or B, 4, h, w), and as many rows of conditions.
        """
        if timestep in self._guided:
            return torch.cat([latents, latents]), conditioning
        return latents, conditioning[-len(latents) :]

    def unet_rows(self, rows: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for every row, before guidance, (R, 4, h, w), float32.

        Args:
            rows: Latents (R, 4, h, w), float32.
            timestep: One of `all_timesteps` for all rows, or a tensor (R,) of timesteps.
            conditioning: R rows.
        """
        if not isinstance(timestep, Tensor):
            timestep = self._on_device[timestep]
        with phase("denoise"):
            latents = rows.to(weight_dtype(self.unet))
            output = self.unet(latents, timestep, **conditioning.unet_inputs)
        return output.sample.float()

    def guide(
        self, prediction: Tensor, timestep: int, guidance_scale: Tensor | None = None
    ) -> Tensor:
        """Combine the rows that `unet_rows` predicts, (2B or B, 4, h, w), to (B, 4, h, w).

        Args:
            prediction: Of the rows that `rows` gives.
            timestep: Where they were predicted.
            guidance_scale: g of each sample, (B,); default: the config's.
        """
        if timestep not in self._guided:
            return prediction
        if guidance_scale is None:
            return guide(prediction, self.config.guidance_scale)
        return guide(prediction, guidance_scale.view(-1, 1, 1, 1))

    def run(
        self,
        latents: Tensor,
        timesteps: Sequence[int],
        conditioning: Conditioning,
        guidance_scale: Tensor | None = None,
        eta: float = 0.0,
        generators: Sequence[Generator] = (),
        whole: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Take steps at `timesteps`, in this order.

        They are deterministic unless `eta` says else, or the solver is lcm or tcd. Solvers of
        second order and reuse of deep features (`cache_interval`) begin every call anew.

        Args:
            latents: (B, 4, h, w) at timesteps[0], float32.
            timesteps: A stretch of `self.timesteps`; nothing happens without any.
            conditioning: As in `predict`.
            guidance_scale: As in `predict`.
            eta: Of DDIM (arXiv 2010.02502, Eq. 16): share, 0 to 1, of the noise that the full
                reverse process adds in a step.
            generators: B, of which each draws its sample's noise: at every step if `eta` is not 0,
                with lcm and tcd at all but the last of the whole schedule.
            whole: Whether every step computes the whole U-Net, whatever `cache_interval` says;
                steps that gradients flow through do in any case.

        Returns:
            Latents (B, 4, h, w) after the last step, and x0hat of every step.
        """
        solver, predictions = self.scheduler, []
        if timesteps and self.config.solver not in STATELESS:
            solver = self._new_solver()
            solver.set_begin_index(self.all_timesteps.index(timesteps[0]))
        draw = list(generators)
        with self.cache.steps(timesteps, whole or torch.is_grad_enabled()) as taken:
            for timestep in taken:
                noise_pred = self.predict(latents, timestep, conditioning, guidance_scale)
                if eta:
                    noise = randn_tensor(latents.shape, generator=draw, device=latents.device)
                    step = solver.step(noise_pred, timestep, latents, eta=eta, variance_noise=noise)
                    latents, predicted = step.prev_sample, step.pred_original_sample
                else:
                    latents, predicted = self._step(solver, noise_pred, timestep, latents, draw)
                predictions.append(predicted)
        return latents, predictions

    def _step(
        self, solver: Any, noise_pred: Tensor, timestep: int, latents: Tensor, draw: list[Generator]
    ) -> tuple[Tensor, Tensor]:
        """Latents after a step from `latents`, and x0hat, each (B, 4, h, w)."""
        match self.config.solver:
            case "ddim":
                step = solver.step(noise_pred, timestep, latents)
                return step.prev_sample, step.pred_original_sample
            case "euler":
                return self._euler_step(noise_pred, timestep, latents)
            case "lcm":
                step = solver.step(noise_pred, timestep, latents, generator=draw)
                return step.prev_sample, step.denoised
            case "tcd":
                gamma = self.config.tcd_gamma
                step = solver.step(noise_pred, timestep, latents, eta=gamma, generator=draw)
                return step.prev_sample, self._split(noise_pred, timestep, latents)[0]
        step = solver.step(noise_pred, timestep, latents)  # of second order
        return step.prev_sample, solver.model_outputs[-1]

    def _euler_step(
        self, noise_pred: Tensor, timestep: int, latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latents at the next timestep p, sqrt(a_p) x0hat + sqrt(1 - a_p) eps, and x0hat.

        After the last timestep a_p is 1. This is the step of diffusers' `EulerDiscreteScheduler`,
        whose latents are divided by sqrt(a_t).
        """
        pred_original_sample, eps = self._split(noise_pred, timestep, latents)
        following = self.all_timesteps[self.all_timesteps.index(timestep) + 1 :]
        if not following:
            return pred_original_sample, pred_original_sample
        alpha = self.scheduler.alphas_cumprod[following[0]]
        return alpha.sqrt() * pred_original_sample + (1 - alpha).sqrt() * eps, pred_original_sample

    def _split(self, prediction: Tensor, timestep: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the U-Net predicted from `latents` as x0hat and eps, each (B, 4, h, w)."""
        alpha = self.scheduler.alphas_cumprod[timestep]
        if self.scheduler.config.prediction_type == "v_prediction":
            pred_original_sample = alpha.sqrt() * latents - (1 - alpha).sqrt() * prediction
            return pred_original_sample, alpha.sqrt() * prediction + (1 - alpha).sqrt() * latents
        return (latents - (1 - alpha).sqrt() * prediction) / alpha.sqrt(), prediction

    def _new_solver(self) -> SchedulerMixin:
        """A solver with all its timesteps; DDIM keeps no state, so it is always the same object."""
        config, solver = self.config, self.scheduler
        schedule = noise_schedule(solver.config)
        schedule.pop("set_alpha_to_one", None)  # DDIM's alone: the others end without noise
        if config.solver == "dpmsolver++":
            solver = DPMSolverMultistepScheduler(**schedule, **DPMSOLVER)
        elif config.solver == "unipc":
            solver = UniPCMultistepScheduler(**schedule, **UNIPC)
        elif config.solver in CONSISTENCY:
            solver_class = LCMScheduler if config.solver == "lcm" else TCDScheduler
            solver = solver_class(**schedule, **self.distillation, **CONSISTENCY_STEP)
        solver.set_timesteps(config.num_inference_steps)
        return solver


def _scheduler(pipeline: Pipeline, config: SamplerConfig) -> DDIMScheduler:
    """DDIM on the checkpoint's noise schedule, with the spacing that `config` may ask for."""
    scheduler = ddim_scheduler(pipeline)
    if config.timestep_spacing is None:
        return scheduler
    return DDIMScheduler.from_config(scheduler.config, timestep_spacing=config.timestep_spacing)


def guide(prediction: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance: e_u + g (e_c - e_u), (B, 4, h, w).

    Args:
        prediction: e_u, then e_c, (2B, 4, h, w).
        guidance_scale: g, of all samples or (B, 1, 1, 1).
    """
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
