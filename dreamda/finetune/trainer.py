"""The training loop behind `python -m dreamda.finetune`.

One loop serves DreamDA's P2-weighted fine-tuning (arXiv 2403.12803 sec. 5.1; Choi et al. 2022,
arXiv 2204.00227, Eq. 8) and the training of a small checkpoint from scratch.
Symbols: a_t is the cumulative alpha-bar at step t, SNR_t = a_t / (1 - a_t).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dreamda.finetune.config import FinetuneConfig
from dreamda.finetune.inputs import CaptionSource, training_images
from dreamda.finetune.lora import add_lora
from expansion.common.errors import require
from expansion.common.files import write_atomic
from expansion.common.seeding import stable_seed
from expansion.data.batches import StreamBatches, stream_loader
from expansion.diffusion.conditioning import Conditioning, encode_tokens
from expansion.diffusion.families import (
    Pipeline,
    family_of,
    require_one_text_encoder,
    text_encoders,
)
from expansion.diffusion.losses import squared_errors
from expansion.diffusion.stable_diffusion import usable_resolution
from expansion.images.records import ImageRecord
from expansion.training.divergence import LossWatch, remedy

logger = logging.getLogger(__name__)


def loss_weights(alphas_cumprod: Tensor, config: FinetuneConfig, prediction_type: str) -> Tensor:
    """Weight of the noise-prediction loss at every training timestep, shape (T,).

    P2: w_t = (k + SNR_t)^-gamma. Min-SNR: w_t = min(SNR_t, snr_gamma) / SNR_t. Both weigh the
    squared error of the noise, which is a_t = SNR_t / (SNR_t + 1) times the squared error of v.
    At zero SNR they have their limits, k^-gamma and 1.

    Args:
        alphas_cumprod: a_t, (T,).
        config: k and gamma of P2, or `snr_gamma` of Min-SNR.
        prediction_type: What the U-Net predicts, "epsilon" or "v_prediction".

    Raises:
        InputError: A weight is infinite, as P2's is with k = 0 at zero SNR.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if config.snr_gamma is not None:
        weights = (config.snr_gamma / snr).clamp(max=1)
    else:
        weights = (config.p2_k + snr) ** -config.p2_gamma
    if prediction_type == "v_prediction":
        weights = weights * alphas_cumprod
    require(
        bool(weights.isfinite().all()),
        f"p2_k {config.p2_k:g} and p2_gamma {config.p2_gamma:g} give the checkpoint's step without "
        "signal an infinite weight; give --p2_k 1, or --p2_gamma 0 with --snr_gamma 5",
    )
    return weights


def learning_rate_factor(step: int, config: FinetuneConfig) -> float:
    """The learning rate relative to its peak: warm-up, then constant or a cosine.

    Args:
        step: From 0.
        config: Lengths of warm-up and training, and the shape after warm-up.
    """
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return 1.0
    progress = (step - config.lr_warmup_steps) / max(
        1, config.max_train_steps - config.lr_warmup_steps
    )
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr_end_factor + (1 - config.lr_end_factor) * cosine


def diffusion_losses(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    weights: Tensor,
    latents: Tensor,
    conditioning: Conditioning,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The weighted loss w_t mean ||target - prediction||^2 of each image, (B,).

    Args:
        unet: Predicts the noise or v.
        scheduler: Gives the noise schedule and says which of both is predicted.
        weights: (T,), from `loss_weights`.
        latents: (B, 4, h, w), VAE-scaled.
        conditioning: B rows.
        noise: Standard normal, like `latents`.
        timesteps: (B,), one per image.
    """
    errors = squared_errors(unet, scheduler, latents, conditioning, noise, timesteps)
    return weights.to(latents.device)[timesteps] * errors


class DiffusionTrainer:
    """Trains the U-Net (and text encoder) of `pipeline` in place; the autoencoder stays as it is.

    With `lora_rank` the U-Net gets adapters (`dreamda.finetune.lora`), and they alone are trained.

    Args:
        pipeline: The checkpoint, float32.
        records: Training images.
        prompt_names: Class names in captions, by label.
        config: Settings; `captions` must be set.
        accelerator: Device, precision and processes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
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
        # What the networks are fed with.
        self.weights = loss_weights(self.scheduler.alphas_cumprod, config, prediction_type)
        self.captions = CaptionSource(
            [getattr(pipeline, name) for name in family_of(pipeline).tokenizers],
            config.captions,
            prompt_names,
            config.caption_dropout,
        )
        self.resolution = usable_resolution(pipeline, config.resolution)
        side = self.resolution // pipeline.vae_scale_factor
        self.latent_shape = (pipeline.vae.config.latent_channels, side, side)
        self.images = training_images(records, config, self.resolution)
        # What is trained, and what watches over it.
        self._prepare_networks()
        rate = remedy("learning_rate", config.learning_rate, config.mixed_precision)
        self.watch = LossWatch(accelerator, rate)
        self.ema = None
        if config.use_ema:
            self.ema = EMAModel(
                self.trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75
            )
            accelerator.register_for_checkpointing(self.ema)

    def _prepare_networks(self) -> None:
        """Choose the weights to train and hand them, with their optimiser, to the accelerator."""
        pipeline, config, accelerator = self.pipeline, self.config, self.accelerator
        # Freeze what is not trained.
        pipeline.vae.requires_grad_(False).to(accelerator.device)
        pipeline.unet.requires_grad_(not config.lora_rank)
        if config.lora_rank:
            add_lora(pipeline.unet, config.lora_rank, config.lora_alpha, config.seed)
        if config.train_text_encoder:
            require_one_text_encoder(family_of(pipeline), "--train_text_encoder")
        self.text_encoders = text_encoders(pipeline)
        for encoder in self.text_encoders:
            encoder.requires_grad_(config.train_text_encoder).to(accelerator.device)
        self.networks = nn.ModuleDict({"unet": pipeline.unet})
        if config.train_text_encoder:
            self.networks["text_encoder"] = pipeline.text_encoder
        self.networks.train()
        # The optimiser sees the trained weights alone.
        self.trained = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
        )
        self.unet, self.optimizer = accelerator.prepare(pipeline.unet, self.optimizer)
        if config.train_text_encoder:
            self.text_encoders = [accelerator.prepare(pipeline.text_encoder)]

    def train(
        self, state_dir: Path, first: int, after_step: Callable[[int, float, float], None]
    ) -> None:
        """Train from step `first` (see `resume`) to `max_train_steps`.

        Args:
            state_dir: Folder of the resumable state; the caller removes it at the end.
            first: Number of steps that are done already.
            after_step: Is called after every step with its number (from 1), its loss and its
                learning rate.

        Raises:
            InputError: A loss or a weight is not finite; nothing of it is saved.
        """
        # Weights that are broken from the start would only show as a loss, hours later.
        start = f"the weights of {state_dir}" if first else "the checkpoint's weights"
        another = f"remove {state_dir.parent}" if first else "give another checkpoint"
        self._require_finite(start, f"{another} to begin anew")
        config, accelerator = self.config, self.accelerator
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
            loss = self._step(step, pixel_values, labels)
            self.watch.require_finite(loss, f"the loss of step {step + 1}")
            after_step(step + 1, loss, self.optimizer.param_groups[0]["lr"])
            if config.checkpointing_steps and (step + 1) % config.checkpointing_steps == 0:
                self._save_state(state_dir, step + 1)
        self._require_finite(f"the weights after step {config.max_train_steps}")
        if self.ema is not None:
            self.ema.copy_to(self.trained)
        self.networks.eval()

    def _require_finite(self, what: str, remedy: str = "") -> None:
        self.watch.require_finite_tensors(self.trained, what, remedy)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside this context the networks are as they would be saved now, in eval mode.

        They have the averaged weights if there are any. Weights, mode and random state are restored
        at the end, so that training does not notice.
        """
        training, device = self.networks.training, self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if self.ema is not None:
                self.ema.store(self.trained)
                self.ema.copy_to(self.trained)
            self.networks.eval()
            try:
                yield
            finally:
                self.networks.train(training)
                if self.ema is not None:
                    self.ema.restore(self.trained)

    def _step(self, step: int, pixel_values: Tensor, labels: Tensor) -> float:
        """Take one optimiser step; returns the mean loss of its images, of all processes."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        num_parts = config.gradient_accumulation_steps
        tensors = (pixel_values, *self._draws(step, labels))
        parts = list(
            zip(*(t.to(accelerator.device).tensor_split(num_parts) for t in tensors), strict=True)
        )
        loss = torch.zeros((), device=accelerator.device)
        for part in parts[:-1]:
            with ExitStack() as unsynchronised:
                for network in (self.unet, *self.text_encoders):
                    unsynchronised.enter_context(accelerator.no_sync(network))
                loss += self._backward(*part)
        loss += self._backward(*parts[-1])
        accelerator.clip_grad_norm_(self.trained, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.trained)
        return accelerator.reduce(loss, "mean").item()

    def _draws(self, step: int, labels: Tensor) -> tuple[Tensor, ...]:
        """Draw posterior noise, noise, timesteps and captions for this process's images.

        They are drawn for the images of all processes, of which each takes its own, so that the
        number of processes does not change them.
        """
        config, accelerator = self.config, self.accelerator
        seed = stable_seed("diffusion", config.seed, step)
        generator = torch.Generator("cpu").manual_seed(seed)
        count = config.train_batch_size
        posterior_noise = torch.randn((count, *self.latent_shape), generator=generator)
        noise = torch.randn((count, *self.latent_shape), generator=generator)
        timesteps = torch.randint(len(self.weights), (count,), generator=generator)
        templates = self.captions.draw(count, seed)
        own = slice(accelerator.process_index, None, accelerator.num_processes)
        input_ids = self.captions.input_ids(labels, templates[own])
        return posterior_noise[own], noise[own], timesteps[own], input_ids, templates[own] < 0

    def _backward(
        self,
        pixel_values: Tensor,
        posterior_noise: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        input_ids: Tensor,
        is_empty: Tensor,
    ) -> Tensor:
        """Add up the gradient of one part of a step; returns the part's share of the mean loss."""
        vae, accelerator = self.pipeline.vae, self.accelerator
        with torch.no_grad():
            posterior = vae.encode(pixel_values).latent_dist
            latents = posterior.mean + posterior.std * posterior_noise
            latents = latents * vae.config.scaling_factor
        with accelerator.autocast():
            size = (self.resolution, self.resolution)
            conditioning = encode_tokens(
                self.pipeline, self.text_encoders, input_ids, is_empty, size
            )
            losses = diffusion_losses(
                self.unet, self.scheduler, self.weights, latents, conditioning, noise, timesteps
            )
        # Gradients are summed over parts and averaged over processes.
        loss = losses.sum() * accelerator.num_processes / self.config.train_batch_size
        accelerator.backward(loss)
        return loss.detach()

    def _save_state(self, state_dir: Path, step: int) -> None:
        """Replace the state in `state_dir`; `step.json`, written last, marks it as complete."""
        accelerator, partial = self.accelerator, _partial_dir(state_dir)
        self._require_finite(f"the weights after step {step}")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_atomic(partial / "step.json", json.dumps({"step": step}))
            _install_state(state_dir)
        accelerator.wait_for_everyone()

    def resume(self, state_dir: Path) -> int:
        """Load the state in `state_dir`, if there is one; returns the number of steps done."""
        if self.accelerator.is_main_process:
            _install_state(state_dir)
        self.accelerator.wait_for_everyone()
        if not (state_dir / "step.json").is_file():
            return 0
        step = json.loads((state_dir / "step.json").read_text())["step"]
        self.accelerator.load_state(str(state_dir))
        if self.ema is not None:
            self.ema.to(self.accelerator.device)  # it is loaded to the CPU
        logger.info("resumed after step %d from %s", step, state_dir)
        return step


def _partial_dir(state_dir: Path) -> Path:
    return state_dir.with_name(state_dir.name + ".partial")


def _install_state(state_dir: Path) -> None:
    """Move a complete new state into place, also one that a killed run left beside it."""
    partial = _partial_dir(state_dir)
    if (partial / "step.json").is_file():
        shutil.rmtree(state_dir, ignore_errors=True)
        partial.rename(state_dir)
