"""GIF-SD as a sampler: img2img whose last latents take one step that raises a score of CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from baselines.gif.config import GIFConfig
from baselines.gif.score import Terms, entropy, score_terms
from expansion.classifier.clip import ClipClassifier
from expansion.common.errors import require, shown
from expansion.common.phases import phase
from expansion.common.seeding import stable_seed
from expansion.diffusion.caching import RecentlyUsed
from expansion.diffusion.channel_transform import (
    draw_transform,
    finite_or_zero,
    project,
    transform_latents,
)
from expansion.diffusion.families import Pipeline
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.memory import recomputing
from expansion.diffusion.samples import Batch, Samples

LOSS_SCALE = 1024.0  # on the score, against underflow in 16 bits; the step takes signs alone
# How the authors' code shows images to CLIP: real ones, and generated ones.
RELEASED_REAL = {"image_mean": [0.4914, 0.4822, 0.4465], "image_std": [0.2023, 0.1994, 0.2010]}
RELEASED_GENERATED = {"do_normalize": False}


class GIFSampler(Img2ImgSampler):
    """Guided imagination (arXiv 2211.13976) on Stable Diffusion.

    Args:
        pipeline: A checkpoint of any family.
        config: Settings of sampling and of the score.
        clip: Tells features and class probabilities of images; its classes are those of the labels.

    Attributes:
        singly: Whether one image at a time is decoded for the gradient.
        recomputes: Whether the decoder keeps no activations for the gradient.
    """

    config: GIFConfig

    def __init__(self, pipeline: Pipeline, config: GIFConfig, clip: ClipClassifier):
        super().__init__(pipeline, config)
        self.clip = clip.to(pipeline.device)
        self.singly = self.recomputes = False
        released = config.clip_compat == "released"
        self.shown_real: dict[str, Any] = RELEASED_REAL if released else {}
        self.shown_generated: dict[str, Any] = RELEASED_GENERATED if released else {}
        self._real: RecentlyUsed[Tensor] = RecentlyUsed(1024)  # logits (1, N) of real images

    @classmethod
    def build(
        cls,
        config: GIFConfig,
        class_names: Sequence[str],
        prompt_names: Sequence[str],
        load_pipeline: Callable[[], Pipeline],
    ) -> GIFSampler:
        """Load CLIP for the classes that prompts know as `prompt_names`; then the pipeline."""
        clip = ClipClassifier.load(
            config.clip_model,
            prompt_names,
            [config.clip_template],
            revision=config.clip_revision,
        )
        require(
            bool(clip.text_features.isfinite().all()),
            f"the CLIP model {config.clip_model} gives features that are NaN; its weights are "
            "damaged, give another --clip_model",
        )
        return cls(load_pipeline(), config, clip)

    def check_labels(self, labels: Sequence[int] | None) -> None:
        if self.config.class_label != "label":
            return
        require(labels is not None, "class_label label: give the images' labels")
        count = len(self.clip.text_features)
        wrong = [label for label in labels if not 0 <= int(label) < count]
        require(not wrong, f"labels {shown(map(str, wrong))}: CLIP was told 0 to {count - 1}")

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Run img2img, then move each group of variants of an image; see `Sampler.sample`.

        A generator draws its variant's posterior, noise, w and b, in this order.
        """
        groups = batch.groups(self.config.group_size)
        latents, conditioning = self.start(self._turned(batch, groups), generators)
        latents, _ = self.denoiser.run(
            latents, self.denoiser.timesteps, conditioning, generators=generators
        )
        scale, shift = draw_transform(latents, generators)
        # Each group by itself, so that memory holds the activations of one.
        moved, figures = [], []
        for rows in groups:
            own = slice(rows.start, rows.stop)
            with phase("guide"):
                part = self._move(batch, rows, latents[own], scale[own], shift[own])
            moved.append(part[0])
            figures.append(part[1])
        details = {name: torch.cat([each[name] for each in figures]) for name in figures[0]}
        return Samples(self.codec.decode(torch.cat(moved)), details)

    def save_memory(self) -> bool:
        """First decode images for the gradient one by one; then also recompute activations."""
        if not self.singly and self.config.group_size > 1:
            self.singly = True
            return True
        done, self.recomputes = self.recomputes, True
        return not done

    def _turned(self, batch: Batch, groups: Sequence[range]) -> Batch:
        """The batch with real images turned and mirrored, each group by a draw of its own.

        The draw follows from the real image's seed and the number of the group, so that it is the
        same whatever else is in the batch.
        """
        config = self.config
        if not config.rotation and not config.flip:
            return batch
        made: dict[str, Tensor] = {}
        origins, index = [], []
        for rows in groups:
            first = int(batch.source_index[rows[0]])
            number = batch.numbers[rows[0]] // config.group_size
            drawn = Generator().manual_seed(stable_seed("turn", batch.source_seeds[first], number))
            share, coin = torch.rand(2, generator=drawn).tolist()
            angle, mirrored = (2 * share - 1) * config.rotation, config.flip and coin < 0.5
            for row in rows:
                source = int(batch.source_index[row])
                # The encoder keeps work by name, so a name says what became of the image.
                name = f"{batch.sources[source]}#turned by {angle}{' and mirrored' * mirrored}"
                if name not in made:
                    image = F.rotate(batch.images[source], angle)  # nearest, corners black
                    made[name] = F.horizontal_flip(image) if mirrored else image
                    origins.append(source)
                index.append(list(made).index(name))
        return dataclasses.replace(
            batch,
            images=torch.stack(list(made.values())),
            sources=tuple(made),
            source_index=torch.tensor(index),
            source_seeds=[batch.source_seeds[source] for source in origins],
            files=[batch.files[source] for source in origins],
        )

    def _move(
        self, batch: Batch, rows: range, latents: Tensor, scale: Tensor, shift: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Move the latents of a group by one step that raises its score.

        Args:
            batch: Holds the group.
            rows: Of the group, k of them.
            latents: z, (k, 4, h, w), after the last step.
            scale: w, (k, 4, 1, 1), as drawn.
            shift: b, as `scale`.

        Returns:
            Latents (k, 4, h, w) within epsilon of z, and figures (k,): the score and its parts
            before the step.
        """
        # What the real image is to CLIP, and which class is to be kept.
        real = torch.cat([self._real_logits(batch, row) for row in rows])
        kept = real.argmax(dim=1)
        if self.config.class_label == "label":
            kept = batch.targets[rows.start : rows.stop].to(real.device)
        # One step on w and b; the result stays near the latents that came in.
        joint, terms = self._gradient(latents, scale, shift, entropy(real), kept)
        joint, skipped = finite_or_zero(joint)
        scale_step, shift_step = (self.config.step_size * joint.sign()).chunk(2, dim=1)
        moved = transform_latents(latents, scale + scale_step, shift + shift_step)
        figures = {
            "score": terms.total,
            "entropy": terms.information + entropy(real),
            "probability": terms.probability,
            "kl": terms.divergence,
            "update_skipped": skipped,
        }
        return project(moved, latents, self.config.constraint_value), figures

    def _gradient(
        self, latents: Tensor, scale: Tensor, shift: Tensor, real_entropy: Tensor, kept: Tensor
    ) -> tuple[Tensor, Terms]:
        """The gradient of a group's score with respect to w and b, (k, 8, 1, 1), up to a factor.

        Images influence each other by their features alone. So the score's gradient with respect
        to the features is taken first, and then carried through CLIP and the decoder, by images
        one at a time where memory is short.

        Args:
            latents: z, (k, 4, h, w).
            scale: w, (k, 4, 1, 1).
            shift: b, as `scale`.
            real_entropy: See `score_terms`, as for `kept`.
        """
        size = 1 if self.singly else len(latents)
        parts = [slice(start, start + size) for start in range(0, len(latents), size)]
        recomputed = recomputing(self.pipeline.vae) if self.recomputes else nullcontext()
        with torch.enable_grad(), recomputed:
            scale, shift = scale.detach().requires_grad_(), shift.detach().requires_grad_()

            def features_of(part: slice) -> Tensor:
                return self._features(latents[part], scale[part], shift[part])

            # Of several parts the activations are dropped, and computed again below.
            whole = features_of(parts[0]) if len(parts) == 1 else None
            found = [whole] if whole is not None else [features_of(p).detach() for p in parts]
            features = torch.cat(found).detach().requires_grad_()
            terms = score_terms(
                features, self.clip.logits(features), real_entropy, kept, self.config.divergence
            )
            (towards,) = torch.autograd.grad(terms.total.mean() * LOSS_SCALE, features)
            joint = torch.zeros_like(torch.cat([scale, shift], dim=1))
            for part in parts:
                attached = features_of(part) if whole is None else whole
                gradients = torch.autograd.grad(attached, (scale, shift), towards[part])
                joint = joint + torch.cat(gradients, dim=1)
        return joint.detach(), terms.detached()

    def _features(self, latents: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """CLIP's features (k, D) of the images that transformed latents decode to.

        Args:
            latents: z, (k, 4, h, w).
            scale: w, (k, 4, 1, 1).
            shift: b, as `scale`.
        """
        decoded = self.codec.decode_raw(transform_latents(latents, scale, shift))
        return self.clip.image_features((decoded / 2 + 0.5).clamp(0, 1), **self.shown_generated)

    def _real_logits(self, batch: Batch, row: int) -> Tensor:
        """CLIP's logits (1, N) of the real image of a row, as it was before it was turned."""
        source = int(batch.source_index[row])
        image = batch.images[source][None]
        return self._real.get(
            batch.sources[source],
            lambda: self.clip.logits(self.clip.image_features(image, **self.shown_real)),
        )
