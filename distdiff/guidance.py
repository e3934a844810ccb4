"""Guidance of a latent by an energy of the images it leads to (paper sec. 3.3, Algorithm 1).

z is the latent when the window opens; w and b, (B, 4, 1, 1), scale and shift its channels:
tau(z) = (1 + w) z + b. One gradient step on (w, b) lowers the mean energy of the next m predicted
images; the result is projected to within epsilon of z. Indices follow `Denoiser`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distdiff.config import DistDiffConfig
from expansion.diffusion.channel_transform import (
    draw_transform,
    finite_or_zero,
    project,
    transform_latents,
)
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.denoising import Denoiser

# Mean energy (B,) over the images predicted by a stretch of steps: the list of x0hat -> energy.
PredictionEnergy = Callable[[Sequence[Tensor], Tensor], Tensor]


def gradient_step(gradient: Tensor, rho: float, mode: str) -> Tensor:
    """The step that guidance subtracts, in the shape of the gradient.

    Args:
        gradient: (B, ...), of the energy.
        rho: Step size.
        mode: "raw" scales the gradient itself by `rho`, "sign" its sign, "unit" its direction
            (each sample's gradient at unit length).
    """
    if mode == "sign":
        return rho * gradient.sign()
    if mode == "unit":
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return rho * gradient / length.clamp_min(1e-12).view(-1, *[1] * (gradient.dim() - 1))
    return rho * gradient


def starting_transform(
    latents: Tensor, generators: Sequence[Generator], start: str, radius: float
) -> tuple[Tensor, Tensor]:
    """The w and b at which the gradient is taken, each (B, 4, 1, 1).

    Args:
        latents: z, (B, 4, h, w).
        generators: B, which draw w and b.
        start: "random" is the draw itself; "inside" shrinks w and b of each channel by one factor,
            until max |w z + b| <= radius / 2; "identity" is w = b = 0, and draws nothing.
        radius: epsilon.
    """
    if start == "identity":
        zeros = latents.new_zeros(*latents.shape[:2], 1, 1)
        return zeros, zeros.clone()
    scale, shift = draw_transform(latents, generators)
    if start == "inside":
        largest = (scale * latents + shift).abs().amax(dim=(2, 3), keepdim=True)
        factor = (radius / 2 / largest.clamp_min(1e-12)).clamp(max=1)
        scale, shift = scale * factor, shift * factor
    return scale, shift


@dataclass(frozen=True)
class Guided:
    """Guided latents (B, 4, h, w), and by name figures (B,) about the update."""

    latents: Tensor
    figures: dict[str, Tensor]


class Guidance:
    """Both forms of guidance over one window of steps.

    Args:
        denoiser: Runs the steps that predict the images.
        energy: Gives the mean energy (B,) of a list of predicted x0hat; differentiable.
        config: Step size, radius and loss scale.
    """

    def __init__(self, denoiser: Denoiser, energy: PredictionEnergy, config: DistDiffConfig):
        self.denoiser = denoiser
        self.energy = energy
        self.config = config

    def look_ahead_energy(
        self,
        latents: Tensor,
        window: Sequence[int],
        conditioning: Conditioning,
        targets: Tensor,
        generators: Sequence[Generator] = (),
    ) -> Tensor:
        """The mean energy (B,) of the images predicted at the steps of `window`.

        Args:
            latents: (B, 4, h, w) at the first timestep of the window.
            window: Timesteps.
            conditioning: As `Denoiser.predict` takes them.
            targets: (B,) labels.
            generators: B, which draw the noise of a solver that needs some. They are left as they
                are, so that the window itself draws the same.
        """
        copies = [copy_of(generator) for generator in generators]
        _, predictions = self.denoiser.run(
            latents, window, conditioning, generators=copies, whole=True
        )
        return self.energy(predictions, targets)

    def transform(
        self,
        latents: Tensor,
        window: Sequence[int],
        conditioning: Conditioning,
        targets: Tensor,
        generators: Sequence[Generator],
    ) -> Guided:
        """Scale and shift the latents once (Eq. 5), for a window that the caller runs afterwards.

        Starts at w ~ U(0, 1) and b ~ N(0, 1) per channel, or where `transform_start` says, takes
        one gradient step on both, and projects the result.

        Args:
            latents: (B, 4, h, w) at the first timestep of the window, float32.
            window: Timesteps whose predictions give the energy; their latents are discarded.
            conditioning: As `Denoiser.predict` takes them.
            targets: (B,) labels.
            generators: B, which draw w and b, and then the noise of a solver that needs some.
        """
        config = self.config
        # Look ahead from the transformed latents, to learn how w and b change the energy.
        radius = config.constraint_value
        scale, shift = starting_transform(latents, generators, config.transform_start, radius)
        with torch.enable_grad():
            scale.requires_grad_()
            shift.requires_grad_()
            start = transform_latents(latents, scale, shift)
            energy = self.look_ahead_energy(start, window, conditioning, targets, generators)
            gradients = torch.autograd.grad((energy * config.loss_scale).sum(), (scale, shift))
        joint = torch.cat(gradients, dim=1) / config.loss_scale  # (B, 8, 1, 1)
        # One step on w and b together; the result stays near the latents that came in.
        joint, skipped = finite_or_zero(joint)
        step = gradient_step(joint, config.rho, config.rho_mode)
        scale_step, shift_step = step.chunk(2, dim=1)
        scale, shift = scale.detach(), shift.detach()
        moved = transform_latents(latents, scale - scale_step, shift - shift_step)
        guided = project(moved, latents, radius)
        # For the manifest: the latents before the step tell what the gradient changed.
        unmoved = project(start.detach(), latents, radius)
        figures = {
            "energy_start": energy.detach(),
            "gradient_norm": torch.linalg.vector_norm(joint.flatten(1), dim=1),
            "saturated": _share((moved - latents).abs() >= radius),
            "changed_by_update": _share(guided != unmoved),
            "update_skipped": skipped,
        }
        if config.log_energy:
            figures["saturated_start"] = _share((start.detach() - latents).abs() >= radius)
        return Guided(guided, figures)

    def direct(
        self,
        latents: Tensor,
        window: Sequence[int],
        conditioning: Conditioning,
        targets: Tensor,
        generators: Sequence[Generator] = (),
    ) -> Guided:
        """Run the window and guide at each of its steps: z_{t-1} = DDIM(z_t) - rho dE/dz_t.

        This is the paper's ablation. The latents returned are those after the window.

        Args:
            latents: (B, 4, h, w) at the first timestep of the window, float32.
            window: Timesteps to run.
            conditioning: As `Denoiser.predict` takes them.
            targets: (B,) labels.
            generators: B, which draw the noise of a solver that needs some.
        """
        energies = []
        skipped = torch.zeros(len(latents), device=latents.device)
        for timestep in window:
            with torch.enable_grad():
                current = latents.detach().requires_grad_()
                following, predictions = self.denoiser.run(
                    current, [timestep], conditioning, generators=generators
                )
                energy = self.energy(predictions, targets)
                (gradient,) = torch.autograd.grad((energy * self.config.loss_scale).sum(), current)
            gradient, unusable = finite_or_zero(gradient / self.config.loss_scale)
            skipped = skipped.maximum(unusable)
            step = gradient_step(gradient, self.config.rho, self.config.rho_mode)
            latents = following.detach() - step
            energies.append(energy.detach())
        figures = {
            "energy_start": energies[0],
            "energy_end": energies[-1],
            "update_skipped": skipped,
        }
        return Guided(latents, figures)


def copy_of(generator: Generator) -> Generator:
    """A generator that draws what `generator` will draw, and leaves it as it is."""
    copy = Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def _share(mask: Tensor) -> Tensor:
    return mask.float().flatten(1).mean(dim=1)
