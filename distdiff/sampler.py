"""DistDiff as a sampler: img2img whose latent is guided once towards the class's prototypes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from diffusers import AutoencoderTiny
from torch import Generator, Tensor
from torch.nn import functional as F

from distdiff.config import DistDiffConfig
from distdiff.energy import DecodedEnergy, ImageEnergy
from distdiff.guidance import Guidance
from distdiff.prototypes import Prototypes, build_prototypes, extract_features
from expansion.classifier.backbones import Classifier, load_classifier
from expansion.common.errors import InputError, require, shown
from expansion.common.phases import phase
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.families import Pipeline
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.memory import recomputing
from expansion.diffusion.samples import Batch, Samples
from expansion.diffusion.stable_diffusion import load_tiny_decoder, weight_dtype
from expansion.images.records import ImageRecord


class DistDiffSampler(Img2ImgSampler):
    """Img2img with hierarchical energy guidance (arXiv 2403.06741).

    Args:
        pipeline: A checkpoint of any family.
        config: Settings of sampling and guidance.
        guide: Frozen classifier of the dataset; default: the one that the config names.
        decoder: Decodes scaled latents to the images whose energy guides; default: the pipeline's
            own autoencoder.
    """

    config: DistDiffConfig

    def __init__(
        self,
        pipeline: Pipeline,
        config: DistDiffConfig,
        guide: Classifier | None = None,
        decoder: AutoencoderTiny | None = None,
    ):
        super().__init__(pipeline, config)
        self.decoder = decoder
        self.guide = guide.to(pipeline.device) if guide is not None else None
        self.energy: DecodedEnergy | None = None
        self.checkpoints = config.gradient_checkpointing

    @classmethod
    def build(
        cls,
        config: DistDiffConfig,
        class_names: Sequence[str],
        prompt_names: Sequence[str],
        load_pipeline: Callable[[], Pipeline],
    ) -> DistDiffSampler:
        guide = None
        if config.energies:
            config.check_run()
            guide = load_classifier(
                config.encoder_weight_path, arch=config.arch, class_names=class_names
            )
        pipeline, decoder = load_pipeline(), None
        if config.energies and config.guidance_decoder:
            decoder = load_tiny_decoder(config.guidance_decoder, pipeline)
        return cls(pipeline, config, guide, decoder)

    def prepare(self, records: Sequence[ImageRecord]) -> None:
        """Build the prototypes of all classes from the real images."""
        if not self.config.energies:
            return
        self._need_guide()
        labels = torch.tensor([record.label for record in records])
        features = extract_features(self.guide, records)
        num_classes = self.guide.num_classes
        unit = F.normalize(features, dim=-1)
        references = [unit[labels == label] for label in range(num_classes)]
        self.use_prototypes(
            build_prototypes(features, labels, num_classes, self.config.K), references
        )

    def check_labels(self, labels: Sequence[int] | None) -> None:
        if not self.config.energies:
            return
        self._need_guide()
        require(labels is not None, "DistDiff guides towards classes: give the images' labels")
        count = self.guide.num_classes
        wrong = [label for label in labels if not 0 <= int(label) < count]
        require(not wrong, f"labels {shown(map(str, wrong))}: the guide knows 0 to {count - 1}")

    def _need_guide(self) -> None:
        """Load the guide that the config names, unless one was given."""
        if self.guide is None:
            self.config.check_run()
            guide = load_classifier(self.config.encoder_weight_path, arch=self.config.arch)
            self.guide = guide.to(self.pipeline.device)

    def use_prototypes(self, prototypes: Prototypes, references: Sequence[Tensor] = ()) -> None:
        """Guide towards these prototypes; `prepare` calls this with those of the real images.

        Args:
            prototypes: Of the guide's features.
            references: Features (R, D) at unit length of the real images of each class, by label;
                for the energy `chamfer` alone.
        """
        device = self.pipeline.device
        placed = Prototypes(
            prototypes.class_prototypes.to(device), prototypes.group_prototypes.to(device)
        )
        real = [features.to(device) for features in references]
        energy = ImageEnergy(self.guide, placed, self.config, real)
        self.energy = DecodedEnergy(self._decode, energy, self.config.loss_scale)

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode latents for the energy: images (B, 3, H, W), about [-1, 1], float32."""
        if self.decoder is None:
            return self.codec.decode_raw(latents)
        return self.decoder.decode(latents.to(weight_dtype(self.decoder))).sample.float()

    @torch.no_grad()
    def sample(self, batch: Batch, generators: Sequence[Generator]) -> Samples:
        """Run img2img and guide the latents in one window of its steps; see `Sampler.sample`."""
        if not self.config.energies:
            return super().sample(batch, generators)
        config = self.config
        guidance = self.guidance([len(rows) for rows in batch.groups(config.variants_per_group)])
        # The executed steps in three stretches; the window in the middle is guided.
        targets = batch.targets.to(self.pipeline.device)
        opens = len(self.denoiser.timesteps) - config.guidance_step
        before = self.denoiser.timesteps[:opens]
        window = self.denoiser.timesteps[opens : opens + config.guidance_period]
        after = self.denoiser.timesteps[opens + config.guidance_period :]

        latents, conditioning = self.start(batch, generators)
        latents, _ = self.denoiser.run(latents, before, conditioning, generators=generators)
        latents, figures = self._guided_window(
            guidance, latents, window, conditioning, targets, generators
        )
        latents, _ = self.denoiser.run(latents, after, conditioning, generators=generators)
        return Samples(self.codec.decode(latents), figures)

    def guidance(self, groups: Sequence[int] | None = None) -> Guidance:
        """Guidance of a batch.

        Args:
            groups: Numbers of images whose energy is computed together; default: each alone.

        Raises:
            InputError: The sampler has not seen the real images.
        """
        if self.energy is None:
            raise InputError(
                "DistDiffSampler needs the real images first: prepare(records), or "
                "prepare_images(images, labels)"
            )
        energy = functools.partial(self.energy, groups=groups)
        return Guidance(self.denoiser, energy, self.config)

    def save_memory(self) -> bool:
        """First decode images for the energy one by one; then also recompute activations."""
        if self.energy is None:
            return False
        if not self.energy.singly:
            self.energy.singly = True
            return True
        done, self.checkpoints = self.checkpoints, True
        return not done

    def _guided_window(
        self,
        guidance: Guidance,
        latents: Tensor,
        window: Sequence[int],
        conditioning: Conditioning,
        targets: Tensor,
        generators: Sequence[Generator],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the window with guidance; returns its latents and figures (B,) about the guidance."""
        if self.config.guidance_type == "direct_guidance":
            with phase("guide"), self._gradient_checkpointing():
                guided = guidance.direct(latents, window, conditioning, targets, generators)
            return guided.latents, guided.figures
        figures: dict[str, Tensor] = {}
        if self.config.log_energy:
            with phase("guide"):
                figures["energy_unguided"] = guidance.look_ahead_energy(
                    latents, window, conditioning, targets, generators
                )
        with phase("guide"), self._gradient_checkpointing():
            guided = guidance.transform(latents, window, conditioning, targets, generators)
        figures |= guided.figures
        # Transform guidance only looked ahead: the window itself is still to be run.
        latents, predictions = self.denoiser.run(
            guided.latents, window, conditioning, generators=generators, whole=True
        )
        if self.config.log_energy:
            with phase("guide"):
                figures["energy_end"] = guidance.energy(predictions, targets)
        return latents, figures

    def _gradient_checkpointing(self) -> AbstractContextManager[None]:
        """Inside, U-Net and decoder recompute activations if `self.checkpoints` says so."""
        networks = (self.pipeline.unet, self.pipeline.vae) if self.checkpoints else ()
        return recomputing(*networks)
