"""Builds a small Stable Diffusion checkpoint and trains its autoencoder.

The parts have Stable Diffusion's classes and interfaces, only fewer channels, so that everything
which runs on the large checkpoints runs on the small one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamda.finetune.config import FromScratchConfig
from expansion.common.errors import require
from expansion.common.seeding import stable_seed
from expansion.data.batches import SeededImages, StreamBatches, stream_loader

MAX_TOKENS = 77  # CLIP's window, which Stable Diffusion expects
LATENT_CHANNELS = 4


def build_tokenizer(captions: Sequence[str], vocab_size: int) -> CLIPTokenizer:
    """Make a CLIP tokenizer whose byte-pair merges are learnt from `captions`.

    Args:
        captions: All texts that it must encode well.
        vocab_size: Largest number of tokens to learn.
    """
    # Learn the merges with CLIP's rules for case, spaces and word ends.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    # Number the tokens as CLIP does: bytes, bytes that end a word, merges, then start and end.
    merges = [tuple(merge) for merge in _merges(learner)]
    pieces = alphabet + [symbol + "</w>" for symbol in alphabet]
    pieces += [left + right for left, right in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _merges(tokenizer: Tokenizer) -> list[Sequence[str]]:
    return json.loads(tokenizer.to_str())["model"]["merges"]


def build_pipeline(
    config: FromScratchConfig, resolution: int, captions: Sequence[str], seed: int
) -> StableDiffusionPipeline:
    """Build an untrained pipeline.

    Args:
        config: Sizes of the networks.
        resolution: Side of its images, pixels.
        captions: All texts that it is trained on; the tokenizer is learnt from them.
        seed: Decides the first weights.
    """
    # The order of the networks decides which random weights each of them begins with.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(captions, config.vocab_size)
        vae = _build_vae(config, resolution)
        text_encoder = _build_text_encoder(config, tokenizer)
        unet = _build_unet(config, resolution)
    # The noise schedule of Stable Diffusion 1.x.
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _build_vae(config: FromScratchConfig, resolution: int) -> AutoencoderKL:
    levels = len(config.vae_block_out_channels)
    return AutoencoderKL(
        block_out_channels=config.vae_block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        latent_channels=LATENT_CHANNELS,
        sample_size=resolution,
    )


def _build_text_encoder(config: FromScratchConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_hidden_size,
            projection_dim=config.text_hidden_size,
            intermediate_size=4 * config.text_hidden_size,
            num_hidden_layers=config.text_num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _build_unet(config: FromScratchConfig, resolution: int) -> UNet2DConditionModel:
    plain = len(config.unet_block_out_channels) - 1  # as in SD, the innermost has no attention
    return UNet2DConditionModel(
        sample_size=resolution // 2 ** (len(config.vae_block_out_channels) - 1),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=config.unet_block_out_channels,
        down_block_types=("CrossAttnDownBlock2D",) * plain + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * plain,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.text_hidden_size,
        attention_head_dim=config.num_attention_heads,
        norm_num_groups=config.norm_num_groups,
    )


def autoencoder_loss(
    images: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor, config: FromScratchConfig
) -> Tensor:
    """L1 + L1 of image gradients + squared error + KL(N(mean, exp(logvar)) || N(0, 1)), all means.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        decoded: Reconstruction, same shape.
        mean: Posterior mean, (B, 4, h, w).
        logvar: Logarithm of the posterior variance, same shape.
        config: Weights of the terms after the first.
    """
    error = decoded - images
    gradient_l1 = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (
        error.abs().mean()
        + config.vae_gradient_weight * gradient_l1
        + config.vae_mse_weight * error.square().mean()
        + config.vae_kl_weight * kl
    )


def train_autoencoder(
    vae: AutoencoderKL,
    images: SeededImages,
    config: FromScratchConfig,
    seed: int,
    progress: Callable[[int, float], None],
) -> None:
    """Train `vae` in place, then fold the latent statistics into it (`fold_latent_scale`).

    Args:
        vae: Autoencoder, float32.
        images: Pixel values (3, H, W) in [-1, 1].
        config: Steps, batch size, learning rate and weights of the loss.
        seed: Decides the order of the images, their augmentation and the posterior's noise.
        progress: Is called after each step with its number from 1 and its loss.

    Raises:
        InputError: The loss is not finite, or a latent channel is the same for all images.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_learning_rate, betas=(0.9, 0.99))
    batches = StreamBatches(
        len(images),
        [config.vae_batch_size] * config.vae_train_steps,
        seed=stable_seed("autoencoder", seed),
    )
    # Warm up, then follow a cosine to 0; noise is drawn per step, so that a run can be repeated.
    vae.train()
    for step, (pixel_values, _) in enumerate(stream_loader(images, batches, num_workers=0)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / config.vae_train_steps))
        warm_up = min(1.0, (step + 1) / max(1, config.vae_warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = config.vae_learning_rate * warm_up * cosine
        posterior = vae.encode(pixel_values).latent_dist
        generator = torch.Generator("cpu").manual_seed(stable_seed("posterior", seed, step))
        decoded = vae.decode(posterior.sample(generator)).sample
        loss = autoencoder_loss(pixel_values, decoded, posterior.mean, posterior.logvar, config)
        require(
            bool(loss.isfinite()),
            f"the autoencoder's training has stopped: the loss of step {step + 1} is "
            f"{loss.item()}; give a smaller --vae_learning_rate than {config.vae_learning_rate:g}",
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress(step + 1, loss.item())
    # Measure the latents of some images, and scale them as Stable Diffusion's are.
    vae.eval()
    with torch.no_grad():
        pixel_values = torch.stack([_plain(images, i) for i in range(min(len(images), 1024))])
        means = vae.encode(pixel_values).latent_dist.mean
        spread = means.std(dim=(0, 2, 3))
        require(
            bool((spread.isfinite() & (spread > 0)).all()),
            f"the autoencoder's latents are the same for all images (deviation {spread.tolist()}); "
            "give more --vae_train_steps, or a smaller --vae_kl_weight or --vae_learning_rate",
        )
        fold_latent_scale(vae, means.mean(dim=(0, 2, 3)), spread)


def _plain(images: SeededImages, index: int) -> Tensor:
    """Pixel values of an image, augmented by a seed that depends on its index alone."""
    return images[index, stable_seed("statistics", index)][0]


@torch.no_grad()
def fold_latent_scale(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make latents times `scaling_factor` zero-mean and unit-variance per channel, in place.

    With z the old latent, the new one is (z - mean) / (std * scaling_factor). Encoder and decoder
    change by the inverse maps, so reconstructions stay the same and the factor keeps Stable
    Diffusion's value.

    Args:
        vae: Trained autoencoder.
        mean: Mean of the old latents per channel, (4,).
        std: Their standard deviation per channel, (4,).
    """
    scale = std * vae.config.scaling_factor
    quant, post_quant = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    quant.weight[:channels] /= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / scale
    quant.bias[channels:] -= 2 * scale.log()  # the other half is the log-variance
    post_quant.bias += F.conv2d(mean[None, :, None, None], post_quant.weight)[0, :, 0, 0]
    post_quant.weight *= scale[None, :, None, None]
