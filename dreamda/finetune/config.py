"""Settings of `python -m dreamda.finetune`; imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.datasets import DEFAULT_DATASET

POSITIVE = (
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_grad_norm",
)
NOT_NEGATIVE = (
    "lora_rank",
    "p2_gamma",
    "p2_k",
    "lr_warmup_steps",
    "validation_steps",
    "checkpointing_steps",
    "dataloader_num_workers",
    "adam_weight_decay",
    "lr_end_factor",
    "affine_degrees",
)
FROM_SCRATCH_POSITIVE = (
    "vae_block_out_channels",
    "vae_train_steps",
    "vae_batch_size",
    "vae_learning_rate",
    "unet_block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "text_hidden_size",
    "text_num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of training a checkpoint's U-Net (and text encoder) on labelled images."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    dataset_split: str = option("train", "images to train on", choices=("train", "prior"))
    data_dir: str = option("data", "where named datasets lie", decides=False)
    test_fraction: float | None = option(
        None, "share of each class that is for testing, of a set that is not split"
    )
    shots: int | None = option(None, "use only this many images per class")
    subset_seed: int = option(0, "which images --shots keeps")
    on_error: str = option(
        "fail", "what an unreadable image does", choices=("fail", "skip"), decides=False
    )
    pretrained_model_name_or_path: str | None = option(
        None, "checkpoint to start from: hub id or diffusers folder"
    )
    from_scratch: bool = option(
        False,
        "build and train a new checkpoint, autoencoder included, instead of starting from one",
    )
    output_dir: str | None = option(
        None, "folder for the trained checkpoint (diffusers layout)", decides=False
    )
    resolution: int | None = option(
        None, "training resolution, pixels; default: the checkpoint's own"
    )
    captions: tuple[str, ...] = option(
        (), "caption templates, {} is the class name; default: the dataset's prompt template"
    )
    caption_dropout: float = option(
        0.1, "share of captions replaced by the empty one, for guidance"
    )
    train_text_encoder: bool = option(False, "train the text encoder too")
    lora_rank: int = option(
        0, "rank of low-rank adapters (LoRA), trained instead of the U-Net; 0: off; needs peft"
    )
    lora_alpha: float | None = option(
        None, "LoRA: what the adapters add is scaled by lora_alpha / lora_rank; default: the rank"
    )
    max_train_steps: int = option(1000, "optimiser steps")
    train_batch_size: int = option(8, "images per optimiser step, all processes together")
    gradient_accumulation_steps: int = option(
        1,
        "parts that each step's images are processed in, for less memory; same result",
        decides=False,
    )
    learning_rate: float = option(1e-5, "peak learning rate of AdamW")
    lr_scheduler: str = option("constant", "after warm-up", choices=("constant", "cosine"))
    lr_warmup_steps: int = option(0, "linear warm-up, steps")
    lr_end_factor: float = option(0.02, "cosine: last learning rate relative to the peak")
    adam_beta2: float = option(0.999, "AdamW's second beta")
    adam_weight_decay: float = option(1e-2, "AdamW's weight decay")
    max_grad_norm: float = option(1.0, "gradient clipping")
    p2_gamma: float = option(
        1.0, "P2: loss weight (p2_k + SNR)^-p2_gamma; 0 weighs all steps alike"
    )
    p2_k: float = option(1.0, "P2: k of the loss weight")
    snr_gamma: float | None = option(None, "min-SNR weight min(SNR, snr_gamma)/SNR instead of P2")
    use_ema: bool = option(False, "save the moving average of the weights")
    ema_decay: float = option(0.999, "largest decay of the moving average")
    random_flip: bool = option(True, "mirror images at random; wrong for digits and text")
    affine_degrees: float = option(0.0, "random rotation of at most this many degrees")
    affine_translate: float = option(0.0, "random shift of at most this share of the side")
    affine_scale: float = option(0.0, "random zoom between 1-x and 1+x")
    mixed_precision: str = option("no", "autocast", choices=("no", "fp16", "bf16"))
    dataloader_num_workers: int = option(0, "processes that load images", decides=False)
    checkpointing_steps: int = option(500, "steps between resumable states; 0: none", decides=False)
    save_dtype: str = option(
        "float16", "number format of the saved weights", choices=("float32", "float16")
    )
    validation_steps: int = option(
        0,
        "steps between sample grids samples_step<N>.png; 0: only before and after training",
        decides=False,
    )
    sample_guidance_scale: float = option(7.5, "guidance scale of the sample grids")
    seed: int = option(0, "random seed")

    def __post_init__(self):
        # Options that exclude or need each other.
        require(
            self.snr_gamma is None or self.p2_gamma == 0,
            f"snr_gamma {self.snr_gamma} and p2_gamma {self.p2_gamma} are two weights of one loss: "
            "set p2_gamma to 0 or leave snr_gamma out",
        )
        require(
            self.from_scratch or self.pretrained_model_name_or_path is not None,
            "nothing to start from: give --pretrained_model_name_or_path, or --from_scratch",
        )
        require(
            not self.from_scratch or self.resolution is not None,
            "--from_scratch needs --resolution",
        )
        require(self.output_dir is not None, "give --output_dir for the trained checkpoint")
        # Ranges of single options.
        require(
            0 <= self.caption_dropout < 1,
            f"caption_dropout {self.caption_dropout}: give 0 to below 1",
        )
        require(0 <= self.ema_decay <= 1, f"ema_decay {self.ema_decay}: give 0 to 1")
        for name in ("adam_beta2", "affine_translate", "affine_scale"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} {value}: give 0 to below 1")
        require(
            self.snr_gamma is None or self.snr_gamma > 0,
            f"snr_gamma {self.snr_gamma}: give a positive number",
        )
        # Numbers of which only the sign matters.
        for name in POSITIVE:
            value = getattr(self, name)
            require(value > 0, f"{name} {value}: give a positive number")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            require(value >= 0, f"{name} {value}: give 0 or a positive number")
        self._check_lora()

    def _check_lora(self) -> None:
        require(
            self.lora_alpha is None or self.lora_alpha > 0,
            f"lora_alpha {self.lora_alpha}: give a positive number",
        )
        require(self.lora_alpha is None or self.lora_rank > 0, "--lora_alpha needs --lora_rank")
        for name in ("from_scratch", "train_text_encoder"):
            require(
                not self.lora_rank or not getattr(self, name),
                f"--lora_rank trains adapters of a finished U-Net, which excludes --{name}",
            )


@dataclass(frozen=True, kw_only=True)
class FromScratchConfig:
    """Architecture and autoencoder training of a new small checkpoint (`--from_scratch`)."""

    vae_block_out_channels: tuple[int, ...] = option(
        (16, 32, 64), "autoencoder channels per level; each level but the first halves the side"
    )
    vae_train_steps: int = option(1200, "autoencoder: optimiser steps")
    vae_batch_size: int = option(32, "autoencoder: images per step")
    vae_learning_rate: float = option(1e-3, "autoencoder: peak learning rate, cosine to 0")
    vae_warmup_steps: int = option(100, "autoencoder: linear warm-up, steps")
    vae_gradient_weight: float = option(
        0.5, "autoencoder: weight of the L1 loss of image gradients"
    )
    vae_mse_weight: float = option(0.5, "autoencoder: weight of the squared error")
    vae_kl_weight: float = option(5e-4, "autoencoder: weight of the mean KL divergence")
    unet_block_out_channels: tuple[int, ...] = option((48, 96), "U-Net channels per level")
    layers_per_block: int = option(1, "residual layers per level, U-Net and autoencoder")
    norm_num_groups: int = option(16, "groups of group normalisation; divides every channel count")
    text_hidden_size: int = option(64, "width of the text encoder and of cross-attention")
    text_num_hidden_layers: int = option(2, "layers of the text encoder")
    num_attention_heads: int = option(4, "heads of the text encoder and of the U-Net's attention")
    vocab_size: int = option(700, "largest BPE vocabulary")

    def __post_init__(self):
        for name in FROM_SCRATCH_POSITIVE:
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            require(
                bool(values) and all(v > 0 for v in values),
                f"{name} {_spaced(value)}: give positive numbers",
            )
        for name in ("vae_warmup_steps", "vae_gradient_weight", "vae_mse_weight", "vae_kl_weight"):
            value = getattr(self, name)
            require(value >= 0, f"{name} {value}: give 0 or a positive number")
        for name in ("vae_block_out_channels", "unet_block_out_channels"):
            value, groups = getattr(self, name), self.norm_num_groups
            require(
                all(channels % groups == 0 for channels in value),
                f"{name} {_spaced(value)}: give multiples of norm_num_groups {groups}",
            )
        heads = self.num_attention_heads
        require(
            self.text_hidden_size % heads == 0,
            f"text_hidden_size {self.text_hidden_size}: give a multiple of num_attention_heads "
            f"{heads}",
        )


def _spaced(value: int | float | tuple) -> str:
    """The value as it is typed on a command line: several numbers with spaces between them."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
