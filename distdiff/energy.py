"""The energies that guidance lowers: distances to class and group prototypes (paper Eq. 3-6).

x is an image of class c, f the guide's features, p_c the class's prototype, p_g^k its groups'.
D_c(x) = ||f(x) - p_c||,  D_g(x) = ||f(x) - p_g^j||, j = argmax_k cos(f(x), p_g^k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distdiff.config import DistDiffConfig
from distdiff.prototypes import Prototypes
from expansion.classifier.backbones import Classifier
from expansion.classifier.transforms import normalize
from expansion.diffusion.encoding import decoded_at_once


class PrototypeEnergy:
    """The energy E = gs D_c + ls D_g of each decoded image.

    Args:
        guide: Frozen classifier in eval mode, float32.
        prototypes: Prototypes of the guide's features, on the guide's device.
        config: Says which energies act, their weights, and `energy_compat`.
    """

    def __init__(self, guide: Classifier, prototypes: Prototypes, config: DistDiffConfig):
        self.guide = guide
        self.prototypes = prototypes
        self.weights = {"global_prototype": config.gs, "local_prototype": config.ls}
        self.names: Sequence[str] = config.targets
        self.released = config.energy_compat == "released"
        # The two guidance functions of the released code differ here: only direct guidance's
        # features have unit length, as the prototypes do.
        self.unit_length = not self.released or config.guidance_type == "direct_guidance"

    def __call__(self, decoded: Tensor, targets: Tensor) -> Tensor:
        """The energy of each image, (B,), differentiable with respect to `decoded`.

        Args:
            decoded: (B, 3, H, W) as the decoder gives it: about [-1, 1], not clamped.
            targets: (B,) labels of the classes to guide towards.
        """
        features = self.features(decoded)
        energy = features.new_zeros(len(features))
        if "global_prototype" in self.names:
            prototypes = self.prototypes.class_prototypes[targets]
            energy = energy + self.weights["global_prototype"] * _distance(features, prototypes)
        if "local_prototype" in self.names:
            prototypes = nearest_groups(features, self.prototypes.group_prototypes[targets])
            energy = energy + self.weights["local_prototype"] * _distance(features, prototypes)
        return energy

    def features(self, decoded: Tensor) -> Tensor:
        """The guide's features (B, D) of decoded images (B, 3, H, W), about [-1, 1].

        They have unit length, except with `energy_compat` "released" and transform guidance.
        """
        size = (self.guide.image_size, self.guide.image_size)
        if self.released:
            inputs = F.interpolate(decoded, size, mode="bicubic")
        else:
            images = (decoded / 2 + 0.5).clamp(0, 1)
            if images.shape[-2:] != size:
                images = F.interpolate(images, size, mode="bicubic", antialias=True)
            inputs = normalize(images)
        features = self.guide.features(inputs)
        return F.normalize(features, dim=-1) if self.unit_length else features


class DecodedEnergy:
    """The energy of the images that latents decode to, averaged over several predictions.

    Where a gradient is wanted, each image's is computed right after its energy and kept instead of
    the decoder's activations. So memory holds the activations of a single call of the decoder,
    however many images and steps there are.

    Args:
        decode: Turns latents (B, 4, h, w) into images as `PrototypeEnergy` takes them.
        energy: Gives the energy (B,) of images and targets.
        loss_scale: Factor on the energy while gradients are computed, against 16-bit underflow.

    Attributes:
        singly: Decode one image at a time, for less memory.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        energy: Callable[[Tensor, Tensor], Tensor],
        loss_scale: float,
    ):
        self.decode = decode
        self.energy = energy
        self.loss_scale = loss_scale
        self.singly = False

    def __call__(self, predictions: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The mean energy (B,) over the predictions of several steps.

        Args:
            predictions: One tensor of latents (B, 4, h, w) for each step.
            targets: (B,) labels.
        """
        count = 1 if self.singly else decoded_at_once(predictions[0])
        energies = [
            torch.cat([*map(self._of_part, latents.split(count), targets.split(count))])
            for latents in predictions
        ]
        return torch.stack(energies).mean(dim=0)

    def _of_part(self, latents: Tensor, targets: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and latents.requires_grad):
            return self.energy(self.decode(latents), targets)
        # The gradient of this part alone, so that its activations are freed before the next part.
        start = latents.detach().requires_grad_()
        energy = self.energy(self.decode(start), targets)
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
