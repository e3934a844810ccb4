"""Inversion: from the latents of a real image to a start and corrections that lead back to it.

CycleDiffusion's DPM-Encoder (Wu & De la Torre, arXiv 2210.05559) for eta > 0, DDIM inversion
(DreamDA Eq. 3-5) for eta = 0. All arithmetic and storage is float32: round trips in 16 bits miss
by 1e-2.

Symbols: t > p are neighbouring timesteps, a_t the cumulative alpha-bar at t.
x0hat and eps are the predicted clean latents and noise; a U-Net predicts one of eps and v.
    sigma_t^2 = eta^2 (1 - a_p)/(1 - a_t) (1 - a_t/a_p)
    mean_t(x0hat, eps) = sqrt(a_p) x0hat + sqrt(1 - a_p - sigma_t^2) eps
    x_p = mean_t + sigma_t z_t
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from expansion.common.errors import require
from expansion.diffusion.denoising import Denoiser

# (R, 4, h, w) latents at (R,) timesteps -> what the U-Net predicts, float32.
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Inversion:
    """An inverted real image: where the reverse process starts, and what its N steps add.

    Attributes:
        start: x_T, (1, 4, h, w).
        corrections: What each step adds to its mean, sigma_t z_t, (N, 4, h, w). It is kept instead
            of z_t so that a last step with sigma_t = 0 needs no division.
    """

    start: Tensor
    corrections: Tensor


class ReverseProcess:
    """The arithmetic of the executed DDIM steps with noise share `eta`.

    Methods take the index of a step, where 0 is the noisiest, or a slice of such indices.

    Args:
        denoiser: Gives the noise schedule and the timesteps.
        eta: Share of DDPM's noise in a step: 0 is DDIM, 1 has DDPM's variance.
        device: Device of the latents.

    Raises:
        InputError: The schedule cannot be inverted.
    """

    def __init__(self, denoiser: Denoiser, eta: float, device: torch.device | str = "cpu"):
        scheduler = denoiser.scheduler
        settings = scheduler.config
        self.predicts_v = settings.prediction_type == "v_prediction"
        self.timesteps = torch.tensor(denoiser.timesteps, device=device)
        stride = settings.num_train_timesteps // scheduler.num_inference_steps
        self.previous = [t - stride for t in denoiser.timesteps]
        alpha = scheduler.alphas_cumprod[denoiser.timesteps].double()
        alpha_prev = torch.stack(
            [
                scheduler.alphas_cumprod[p] if p >= 0 else scheduler.final_alpha_cumprod
                for p in self.previous
            ]
        ).double()
        require(
            self.predicts_v or bool((alpha > 0).all()),
            "this checkpoint's schedule starts from pure noise (zero terminal SNR) but its U-Net "
            "predicts the noise, so its first step cannot be inverted; lower --strength",
        )
        # The coefficients of the module's formulas, in double precision until they are placed.
        variance = eta**2 * (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)

        def column(values: Tensor) -> Tensor:
            return values.float().to(device)[:, None, None, None]

        self.sqrt_alpha, self.sqrt_noise = column(alpha.sqrt()), column((1 - alpha).sqrt())
        self.sqrt_alpha_prev = column(alpha_prev.sqrt())
        self.sqrt_noise_prev = column((1 - alpha_prev).sqrt())
        self.sigma = column(variance.sqrt())
        self.direction = column((1 - alpha_prev - variance).clamp(min=0).sqrt())

    def __len__(self) -> int:
        return len(self.timesteps)

    def split(self, index: int | slice, latents: Tensor, prediction: Tensor):
        """Turn what the U-Net predicted into x0hat and eps, each in the shape of `latents`.

        Args:
            index: Step, or slice of S steps.
            latents: x_t, (B, 4, h, w); (S, 4, h, w) for a slice.
            prediction: The U-Net's, like `latents`.
        """
        return self._split(self.sqrt_alpha[index], self.sqrt_noise[index], latents, prediction)

    def mean(self, index: int | slice, pred_original_sample: Tensor, noise_pred: Tensor) -> Tensor:
        """The mean of x_p: sqrt(a_p) x0hat + sqrt(1 - a_p - sigma_t^2) eps.

        Args:
            index: Step, or slice of S steps.
            pred_original_sample: x0hat, (B, 4, h, w); (S, 4, h, w) for a slice.
            noise_pred: eps, of the same shape.
        """
        toward = self.sqrt_alpha_prev[index] * pred_original_sample
        return toward + self.direction[index] * noise_pred

    def invert_step(self, index: int, latents: Tensor, prediction: Tensor) -> Tensor:
        """Go one step back, from x_p to x_t (DreamDA Eq. 5).

        x_t = sqrt(a_t) x0hat(x_p, eps) + sqrt(1 - a_t) eps.

        Args:
            index: The step that leads from x_t to x_p.
            latents: x_p, (B, 4, h, w).
            prediction: The U-Net's for `latents`.
        """
        pred_original_sample, noise_pred = self._split(
            self.sqrt_alpha_prev[index], self.sqrt_noise_prev[index], latents, prediction
        )
        return self.sqrt_alpha[index] * pred_original_sample + self.sqrt_noise[index] * noise_pred

    def _split(self, sqrt_alpha: Tensor, sqrt_noise: Tensor, latents: Tensor, prediction: Tensor):
        if self.predicts_v:
            pred_original_sample = sqrt_alpha * latents - sqrt_noise * prediction
            return pred_original_sample, sqrt_alpha * prediction + sqrt_noise * latents
        return (latents - sqrt_noise * prediction) / sqrt_alpha, prediction


def encode_trajectory(
    process: ReverseProcess,
    latents: Tensor,
    generator: Generator,
    start_generator: Generator | None = None,
) -> Tensor:
    """Draw a whole trajectory of noisy latents given x_0; no network is needed.

    As in diffusers' `CycleDiffusionPipeline`, the last step lands on x_0 itself. One noise is drawn
    for x_T, then one for each step but the last.

    Args:
        process: The N steps.
        latents: x_0, (1, 4, h, w).
        generator: Draws the noises.
        start_generator: Draws the noise for x_T; default: `generator`.

    Returns:
        x_T, ..., x_p of the last step, (N + 1, 4, h, w).
    """

    def noise(drawn_from: Generator = generator) -> Tensor:
        return randn_tensor(latents.shape, generator=drawn_from, device=latents.device)

    first = noise(start_generator or generator)
    trajectory = [process.sqrt_alpha[0] * latents + process.sqrt_noise[0] * first]
    for i, previous in enumerate(process.previous):
        if previous <= 0:
            trajectory.append(latents)
            continue
        noise_share = (trajectory[-1] - process.sqrt_alpha[i] * latents) / process.sqrt_noise[i]
        trajectory.append(process.mean(i, latents, noise_share) + process.sigma[i] * noise())
    return torch.cat(trajectory)


def cycle_inversion(
    process: ReverseProcess,
    latents: Tensor,
    predict: Predict,
    generator: Generator,
    start_generator: Generator | None = None,
) -> Inversion:
    """CycleDiffusion's inversion: draw a trajectory, and keep the noises that lead along it.

    z_t = (x_p - mean_t) / sigma_t is the noise with which the step from x_t gives x_p.

    Args:
        process: The N steps.
        latents: x_0, (1, 4, h, w).
        predict: The U-Net's prediction; it is called once, for all steps together.
        generator: As in `encode_trajectory`.
        start_generator: As in `encode_trajectory`.
    """
    trajectory = encode_trajectory(process, latents, generator, start_generator)
    noisy, following = trajectory[:-1], trajectory[1:]
    everything = slice(None)
    prediction = predict(noisy, process.timesteps)
    mean = process.mean(everything, *process.split(everything, noisy, prediction))
    return Inversion(noisy[:1], following - mean)


def ddim_inversion(process: ReverseProcess, latents: Tensor, predict: Predict) -> Inversion:
    """Deterministic inversion: DDIM's steps run backwards from x_0, one after another.

    As in diffusers' `DDIMInverseScheduler`, the noise of the step between p and t is predicted at
    t from x_p, because x_t is not known yet. So the round trip is approximate.

    Args:
        process: The N steps.
        latents: x_0, (1, 4, h, w).
        predict: The U-Net's prediction; it is called for one step at a time.
    """
    corrections = torch.zeros_like(latents).expand(len(process), -1, -1, -1)
    for i in reversed(range(len(process))):
        prediction = predict(latents, process.timesteps[i : i + 1])
        latents = process.invert_step(i, latents, prediction)
    return Inversion(latents, corrections)
