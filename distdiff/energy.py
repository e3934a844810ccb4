"""The energies that guidance lowers: what a decoded image is said to lack.

x is an image of class c, f the guide's features at unit length, p its class probabilities.
`prototypes` is DistDiff's own energy (paper Eq. 3-6), `chamfer` that of arXiv 2508.10631, `entropy`
that of arXiv 2502.15588; a sum of them with weights guides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from expansion.classifier.backbones import Classifier
from expansion.classifier.transforms import normalize
from expansion.diffusion.encoding import decoded_at_once


class Energy(Protocol):
    """One energy of images, as the guide sees them."""

    def __call__(
        self, features: Tensor, logits: Tensor, targets: Tensor, groups: Sequence[int]
    ) -> Tensor:
        """The energy of each image, (B,), differentiable.

        Args:
            features: (B, D).
            logits: (B, N), of the guide's classes.
            targets: (B,) labels.
            groups: Numbers of images that are looked at together, side by side; their sum is B.
        """


class ImageEnergy:
    """The weighted sum of the energies that a config names, of decoded images.

    Args:
        guide: Frozen classifier in eval mode, float32.
        prototypes: Prototypes of the guide's features, on the guide's device.
        config: Names the energies and their weights, and how images become features.
        references: Features (R, D) at unit length of the real images of each class, by label; for
            `chamfer` alone.
    """

    def __init__(
        self,
        guide: Classifier,
        prototypes: Prototypes,
        config: DistDiffConfig,
        references: Sequence[Tensor] = (),
    ):
        self.guide = guide
        energies: dict[str, Energy] = {
            "prototypes": PrototypeEnergy(prototypes, config),
            "chamfer": ChamferEnergy(references),
            "entropy": EntropyEnergy(),
        }
        self.energies = [(weight, energies[name]) for name, weight in config.energies.items()]
        self.released = config.energy_compat == "released"
        # The two guidance functions of the released code differ here: only direct guidance's
        # features have unit length, as the prototypes do.
        self.unit_length = not self.released or config.guidance_type == "direct_guidance"

    def __call__(
        self, decoded: Tensor, targets: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        """The energy of each image, (B,), differentiable with respect to `decoded`.

        Args:
            decoded: (B, 3, H, W) as the decoder gives it: about [-1, 1], not clamped.
            targets: (B,) labels of the classes to guide towards.
            groups: Numbers of images that are looked at together; default: each alone.
        """
        raw = self.guide.features(self._inputs(decoded))
        features = self._compared(raw)
        logits = self.guide.head(raw) if self.needs_logits else raw.new_zeros(len(raw), 0)
        groups = [1] * len(raw) if groups is None else groups
        total = features.new_zeros(len(features))
        for weight, energy in self.energies:
            total = total + weight * energy(features, logits, targets, groups)
        return total

    def features(self, decoded: Tensor) -> Tensor:
        """The guide's features (B, D) of decoded images (B, 3, H, W), about [-1, 1].

        They have unit length, except with `energy_compat` "released" and transform guidance.
        """
        return self._compared(self.guide.features(self._inputs(decoded)))

    def _compared(self, raw: Tensor) -> Tensor:
        return F.normalize(raw, dim=-1) if self.unit_length else raw

    @property
    def needs_logits(self) -> bool:
        """Whether one of the energies looks at class probabilities."""
        return any(isinstance(energy, EntropyEnergy) for _, energy in self.energies)

    def _inputs(self, decoded: Tensor) -> Tensor:
        """The guide's inputs (B, 3, side, side) of decoded images (B, 3, H, W), about [-1, 1]."""
        size = (self.guide.image_size, self.guide.image_size)
        if self.released:
            return F.interpolate(decoded, size, mode="bicubic")
        images = (decoded / 2 + 0.5).clamp(0, 1)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return normalize(images)


class PrototypeEnergy:
    """gs D_c + ls D_g: distances to the class's prototype and to the nearest of its groups'.

    D_c(x) = ||f(x) - p_c||,  D_g(x) = ||f(x) - p_g^j||, j = argmax_k cos(f(x), p_g^k).

    Args:
        prototypes: Prototypes of the guide's features, on its device.
        config: Says which of the two act, and their weights.
    """

    def __init__(self, prototypes: Prototypes, config: DistDiffConfig):
        self.prototypes = prototypes
        self.weights = {"global_prototype": config.gs, "local_prototype": config.ls}
        self.names: Sequence[str] = config.targets

    def __call__(
        self, features: Tensor, logits: Tensor, targets: Tensor, groups: Sequence[int]
    ) -> Tensor:
        energy = features.new_zeros(len(features))
        if "global_prototype" in self.names:
            prototypes = self.prototypes.class_prototypes[targets]
            energy = energy + self.weights["global_prototype"] * _distance(features, prototypes)
        if "local_prototype" in self.names:
            prototypes = nearest_groups(features, self.prototypes.group_prototypes[targets])
            energy = energy + self.weights["local_prototype"] * _distance(features, prototypes)
        return energy


class ChamferEnergy:
    """The two-sided distance between the images of a group and the real images of their class.

    For G images and R real ones it is mean_i min_r ||f_i - f_r|| + mean_r min_i ||f_i - f_r||: each
    image comes near a real one, and each real one has an image near it. An image's own energy is
    the G-th part of the first mean, and of the second what is due to it, times G.

    Args:
        references: Features (R, D) at unit length of the real images of each class, by label.
    """

    def __init__(self, references: Sequence[Tensor]):
        self.references = references

    def __call__(
        self, features: Tensor, logits: Tensor, targets: Tensor, groups: Sequence[int]
    ) -> Tensor:
        energies = []
        for members, labels in zip(
            features.split(list(groups)), targets.split(list(groups)), strict=True
        ):
            real = self.references[int(labels[0])]
            distances = torch.linalg.vector_norm(members[:, None] - real, dim=-1)  # (G, R)
            nearest, owner = distances.min(dim=0)
            mine = owner == torch.arange(len(members), device=owner.device)[:, None]
            covered = torch.where(mine, nearest, 0.0).sum(dim=1)
            energies.append(distances.min(dim=1).values + covered * len(members) / len(real))
        return torch.cat(energies)


class EntropyEnergy:
    """-H(p) = sum_c p_c log p_c: guidance that lowers it makes images that the guide is unsure of.

    With a negative weight it makes images that the guide is sure of.
    """

    def __call__(
        self, features: Tensor, logits: Tensor, targets: Tensor, groups: Sequence[int]
    ) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        return (log_p.exp() * log_p).sum(dim=1)


class DecodedEnergy:
    """The energy of the images that latents decode to, averaged over several predictions.

    Where a gradient is wanted, each image's is computed right after its energy and kept instead of
    the decoder's activations. So memory holds the activations of a single call of the decoder,
    however many images and steps there are.

    Args:
        decode: Turns latents (B, 4, h, w) into images as `ImageEnergy` takes them.
        energy: Gives the energy (B,) of images, targets and numbers of images of the groups.
        loss_scale: Factor on the energy while gradients are computed, against 16-bit underflow.

    Attributes:
        singly: Decode one image, or group, at a time, for less memory.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        energy: Callable[[Tensor, Tensor, Sequence[int]], Tensor],
        loss_scale: float,
    ):
        self.decode = decode
        self.energy = energy
        self.loss_scale = loss_scale
        self.singly = False

    def __call__(
        self,
        predictions: Sequence[Tensor],
        targets: Tensor,
        groups: Sequence[int] | None = None,
    ) -> Tensor:
        """The mean energy (B,) over the predictions of several steps.

        Args:
            predictions: One tensor of latents (B, 4, h, w) for each step.
            targets: (B,) labels.
            groups: Numbers of images that are looked at together; default: each alone.
        """
        groups = [1] * len(targets) if groups is None else groups
        parts = self._parts(groups, decoded_at_once(predictions[0]))
        rows = [sum(part) for part in parts]
        energies = []
        for latents in predictions:
            given = zip(latents.split(rows), targets.split(rows), parts, strict=True)
            energies.append(torch.cat([self._of_part(*each) for each in given]))
        return torch.stack(energies).mean(dim=0)

    def _parts(self, groups: Sequence[int], at_once: int) -> list[list[int]]:
        """The groups, joined to parts of at most `at_once` images as far as none is cut."""
        parts: list[list[int]] = []
        for size in groups:
            if self.singly or not parts or sum(parts[-1]) + size > at_once:
                parts.append([])
            parts[-1].append(size)
        return parts

    def _of_part(self, latents: Tensor, targets: Tensor, groups: Sequence[int]) -> Tensor:
        if not (torch.is_grad_enabled() and latents.requires_grad):
            return self.energy(self.decode(latents), targets, groups)
        # The gradient of this part alone, so that its activations are freed before the next part.
        start = latents.detach().requires_grad_()
        energy = self.energy(self.decode(start), targets, groups)
        (gradient,) = torch.autograd.grad((energy * self.loss_scale).sum(), start)
        return _KnownGradient.apply(latents, energy.detach(), gradient / self.loss_scale)


class _KnownGradient(torch.autograd.Function):
    """Passes on values (B,) whose gradients with respect to `inputs` (B, ...) are known already."""

    @staticmethod
    def forward(ctx, inputs: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return values.clone()

    @staticmethod
    def backward(ctx, weights: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return weights.view(-1, *[1] * (gradients.dim() - 1)) * gradients, None, None


@torch.no_grad()
def nearest_groups(features: Tensor, group_prototypes: Tensor) -> Tensor:
    """The group prototype (B, D) that has the largest cosine with each feature; no gradient.

    Args:
        features: (B, D).
        group_prototypes: (B, K, D), the groups of each sample's class, unit length.
    """
    cosines = torch.einsum("bd,bkd->bk", F.normalize(features, dim=-1), group_prototypes)
    return group_prototypes[torch.arange(len(features)), cosines.argmax(dim=1)]


def _distance(features: Tensor, prototypes: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features - prototypes, dim=-1)
