"""What a diffusion model is trained by."""

from __future__ import annotations

from diffusers import DDPMScheduler
from torch import Tensor, nn


def squared_errors(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    latents: Tensor,
    prompt_embeds: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The mean squared error of the U-Net's prediction for each image, (B,).

    Args:
        unet: Predicts the noise or v.
        scheduler: Gives the noise schedule and says which of both is predicted.
        latents: (B, 4, h, w), VAE-scaled.
        prompt_embeds: (B, L, D).
        noise: Standard normal, like `latents`.
        timesteps: (B,), one per image.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    prediction = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds).sample
    return (prediction.float() - target).square().mean(dim=(1, 2, 3))
