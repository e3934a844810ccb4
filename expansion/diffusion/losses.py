"""What a diffusion model is trained by."""

from __future__ import annotations

from diffusers import DDPMScheduler
from torch import Tensor, nn

from expansion.diffusion.conditioning import Conditioning


def squared_errors(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    latents: Tensor,
    conditioning: Conditioning,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The mean squared error of the U-Net's prediction for each image, (B,).

    Args:
        unet: Predicts the noise or v.
        scheduler: Gives the noise schedule and says which of both is predicted.
        latents: (B, 4, h, w), VAE-scaled.
        conditioning: B rows.
        noise: Standard normal, like `latents`.
        timesteps: (B,), one per image.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    prediction = unet(noisy, timesteps, **conditioning.unet_inputs).sample
    return (prediction.float() - target).square().mean(dim=(1, 2, 3))
