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
    """Where the reverse process starts, and what each of its N steps adds to its mean.

    Attributes:
        start: (1, 4, h, w), x_T.
        corrections: (N, 4, h, w), sigma_t z_t; they are kept instead of z_t so that a last step
            with sigma_t = 0 needs no division.
    """

    start: Tensor
    corrections: Tensor


class ReverseProcess:
    """Arithmetic of the executed DDIM steps with noise share `eta`.

    Steps are addressed by their index from 0, the noisiest, or by a slice of them.

    Args:
        denoiser: Its schedule and timesteps are used.
        eta: 0 is DDIM, 1 has DDPM's variance.
        device: Where the latents are.

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
        """x0hat and eps from the U-Net's prediction at these steps, each like `latents`."""
        return self._split(self.sqrt_alpha[index], self.sqrt_noise[index], latents, prediction)

    def mean(self, index: int | slice, pred_original_sample: Tensor, noise_pred: Tensor) -> Tensor:
        """Mean of x_p: sqrt(a_p) x0hat + sqrt(1 - a_p - sigma_t^2) eps."""
        toward = self.sqrt_alpha_prev[index] * pred_original_sample
        return toward + self.direction[index] * noise_pred

    def invert_step(self, index: int, latents: Tensor, prediction: Tensor) -> Tensor:
        """x_t from x_p (DreamDA Eq. 5): sqrt(a_t) x0hat(x_p, eps) + sqrt(1 - a_t) eps."""
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
    """x_T, ..., x_p of the last step, drawn from q given x_0: (N + 1, 4, h, w).

    No network is needed. As in diffusers' `CycleDiffusionPipeline`, the last step lands on x_0
    itself. Draws one noise for x_T, then one per step but the last.

    Args:
        latents: (1, 4, h, w), x_0.
        start_generator: Draws the noise for x_T, if not `generator` does.
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
    """CycleDiffusion's encoding of x_0 (1, 4, h, w); `predict` sees all steps in one call.

    z_t = (x_p - mean_t) / sigma_t, the noise with which the step from x_t gives x_p. Generators
    are those of `encode_trajectory`.
    """
    trajectory = encode_trajectory(process, latents, generator, start_generator)
    noisy, following = trajectory[:-1], trajectory[1:]
    everything = slice(None)
    prediction = predict(noisy, process.timesteps)
    mean = process.mean(everything, *process.split(everything, noisy, prediction))
    return Inversion(noisy[:1], following - mean)


def ddim_inversion(process: ReverseProcess, latents: Tensor, predict: Predict) -> Inversion:
    """DDIM's steps run backwards from x_0 (1, 4, h, w), one after another.

    As in diffusers' `DDIMInverseScheduler`, the noise of the step between p and t is predicted at
    t from x_p, for want of x_t; so the round trip is approximate.
    """
    corrections = torch.zeros_like(latents).expand(len(process), -1, -1, -1)
    for i in reversed(range(len(process))):
        prediction = predict(latents, process.timesteps[i : i + 1])
        latents = process.invert_step(i, latents, prediction)
    return Inversion(latents, corrections)
