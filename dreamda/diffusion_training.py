"""The training loop behind `python -m dreamda.finetune`.

One loop serves DreamDA's P2-weighted fine-tuning (arXiv 2403.12803 sec. 5.1; Choi et al. 2022,
arXiv 2204.00227, Eq. 8) and the training of a small checkpoint from scratch.
Symbols: a_t is the cumulative alpha-bar at step t, SNR_t = a_t / (1 - a_t).
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torchvision.transforms import v2

from dreamda.config import FinetuneConfig
from expansion.batches import SeededImages, StreamBatches, stream_loader
from expansion.config import require
from expansion.image_datasets import ImageRecord
from expansion.prompts import class_prompt
from expansion.seeding import stable_seed

logger = logging.getLogger(__name__)


def loss_weights(alphas_cumprod: Tensor, config: FinetuneConfig, prediction_type: str) -> Tensor:
    """Weight of the noise-prediction loss at every training timestep, shape (T,).

    P2: w_t = (k + SNR_t)^-gamma. Min-SNR: w_t = min(SNR_t, snr_gamma) / SNR_t. Both weigh the
    squared error of the noise, which is a_t = SNR_t / (SNR_t + 1) times the squared error of v.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if config.snr_gamma is not None:
        weights = snr.clamp(max=config.snr_gamma) / snr
    else:
        weights = (config.p2_k + snr) ** -config.p2_gamma
    if prediction_type == "v_prediction":
        weights = weights * snr / (snr + 1)
    return weights


def learning_rate_factor(step: int, config: FinetuneConfig) -> float:
    """Learning rate at `step` (from 0) relative to its peak: warm-up, then constant or cosine."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return 1.0
    progress = (step - config.lr_warmup_steps) / max(
        1, config.max_train_steps - config.lr_warmup_steps
    )
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr_end_factor + (1 - config.lr_end_factor) * cosine


def training_transform(config: FinetuneConfig, resolution: int) -> v2.Compose:
    """From a PIL image to pixel values (3, H, W) in [-1, 1], with the augmentation of `config`."""
    zoom = (1 - config.affine_scale, 1 + config.affine_scale)
    shift = (config.affine_translate, config.affine_translate)
    steps: list[nn.Module] = [
        v2.Resize(resolution, interpolation=v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(resolution),
    ]
    if config.random_flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.affine_degrees or config.affine_translate or config.affine_scale:
        steps.append(
            v2.RandomAffine(
                config.affine_degrees, shift, zoom, interpolation=v2.InterpolationMode.BILINEAR
            )
        )
    to_pixel_values = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.5]),
    ]
    return v2.Compose(steps + to_pixel_values)


class CaptionSource:
    """Token ids of a caption per image: a random template of its class, or the empty caption."""

    def __init__(self, tokenizer, templates: Sequence[str], names: Sequence[str], dropout: float):
        def tokens(text: str) -> Tensor:
            return tokenizer(
                text,
                padding="max_length",
                truncation=True,
                max_length=tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids[0]

        self.by_class = [[tokens(class_prompt(t, name)) for t in templates] for name in names]
        self.empty = tokens("")
        self.dropout = dropout

    def draw(self, labels: Tensor, seed: int) -> Tensor:
        """Token ids (B, L) for `labels` (B,), random by `seed`."""
        rng = random.Random(seed)
        return torch.stack(
            [
                self.empty if rng.random() < self.dropout else rng.choice(self.by_class[label])
                for label in labels.tolist()
            ]
        )


def diffusion_loss(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    weights: Tensor,
    latents: Tensor,
    prompt_embeds: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """mean_i[ w_t ||target - prediction||^2 ] at one random timestep per image.

    Args:
        latents: (B, 4, h, w), VAE-scaled.
        prompt_embeds: (B, L, D).
        weights: (T,), see `loss_weights`.
        generator: CPU generator of noise and timesteps.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    timesteps = torch.randint(len(weights), (len(latents),), generator=generator).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    prediction = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds).sample
    errors = (prediction.float() - target).square().mean(dim=(1, 2, 3))
    return (weights.to(latents.device)[timesteps] * errors).mean()


class DiffusionTrainer:
    """Trains the U-Net (and text encoder) of `pipeline` in place; the autoencoder stays as it is.

    Args:
        pipeline: The checkpoint, float32.
        records: Training images.
        prompt_names: Class name in captions, by label.
        config: See `FinetuneConfig`; `captions` must be set.
        accelerator: Device, precision and processes.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        records: Sequence[ImageRecord],
        prompt_names: Sequence[str],
        config: FinetuneConfig,
        accelerator: Accelerator,
    ):
        self.pipeline, self.config, self.accelerator = pipeline, config, accelerator
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        prediction_type = self.scheduler.config.prediction_type
        require(
            prediction_type in ("epsilon", "v_prediction"),
            f"a checkpoint that predicts {prediction_type!r} cannot be trained here",
        )
        self.weights = loss_weights(self.scheduler.alphas_cumprod, config, prediction_type)
        self.captions = CaptionSource(
            pipeline.tokenizer, config.captions, prompt_names, config.caption_dropout
        )
        resolution = (
            config.resolution or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        )
        self.images = SeededImages(
            records, training_transform(config, resolution), keep_decoded=resolution <= 64
        )
        pipeline.vae.requires_grad_(False).to(accelerator.device)
        pipeline.unet.requires_grad_(True)
        pipeline.text_encoder.requires_grad_(config.train_text_encoder).to(accelerator.device)
        self.networks = nn.ModuleDict({"unet": pipeline.unet})
        if config.train_text_encoder:
            self.networks["text_encoder"] = pipeline.text_encoder
        self.networks.train()
        self.optimizer = torch.optim.AdamW(
            self.networks.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
        )
        self.unet, self.optimizer = accelerator.prepare(pipeline.unet, self.optimizer)
        self.text_encoder = pipeline.text_encoder
        if config.train_text_encoder:
            self.text_encoder = accelerator.prepare(pipeline.text_encoder)
        self.ema = None
        if config.use_ema:
            self.ema = EMAModel(
                self.networks.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75
            )
            accelerator.register_for_checkpointing(self.ema)

    def train(self, state_dir: Path, progress: Callable[[int, float], None]) -> None:
        """Run to `max_train_steps`, going on from the state in `state_dir` if there is one.

        Args:
            state_dir: Folder of the resumable state; removed at the end by the caller.
            progress: Called after every step with its number (from 1) and its loss.
        """
        config, accelerator = self.config, self.accelerator
        first = self._resume(state_dir)
        batches = StreamBatches(
            len(self.images),
            [config.train_batch_size] * config.max_train_steps,
            seed=config.seed,
            first=first,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        loader = stream_loader(self.images, batches, config.dataloader_num_workers)
        for step, (pixel_values, labels) in enumerate(loader, start=first):
            loss = self._step(step, pixel_values.to(accelerator.device), labels)
            progress(step + 1, loss)
            if config.checkpointing_steps and (step + 1) % config.checkpointing_steps == 0:
                self._save_state(state_dir, step + 1)
        if self.ema is not None:
            self.ema.copy_to(self.networks.parameters())
        self.networks.eval()

    def _step(self, step: int, pixel_values: Tensor, labels: Tensor) -> float:
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        seed = stable_seed("diffusion", config.seed, step, accelerator.process_index)
        generator = torch.Generator("cpu").manual_seed(seed)
        input_ids = self.captions.draw(labels, seed).to(accelerator.device)
        vae = self.pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(pixel_values).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean.device)
            latents = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
        with accelerator.autocast():
            prompt_embeds = self.text_encoder(input_ids)[0]
            loss = diffusion_loss(
                self.unet, self.scheduler, self.weights, latents, prompt_embeds, generator
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.networks.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.networks.parameters())
        return loss.item()

    def _save_state(self, state_dir: Path, step: int) -> None:
        """Replace the state in `state_dir` by a whole one."""
        partial = state_dir.with_name(state_dir.name + ".partial")
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            (partial / "step.json").write_text(json.dumps({"step": step}))
            shutil.rmtree(state_dir, ignore_errors=True)
            partial.rename(state_dir)
        self.accelerator.wait_for_everyone()

    def _resume(self, state_dir: Path) -> int:
        if not (state_dir / "step.json").is_file():
            return 0
        step = json.loads((state_dir / "step.json").read_text())["step"]
        self.accelerator.load_state(str(state_dir))
        logger.info("resumed after step %d from %s", step, state_dir)
        return step
