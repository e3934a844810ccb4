"""Stable Diffusion checkpoints, 1.x, 2.x and XL: loading and saving.

Loading never runs code from a checkpoint: it reads safetensors, and
old single files with torch.load's weights_only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn

from expansion.common.errors import InputError, brief, require, shown
from expansion.common.hub import hub_failure, no_vain_requests, only_cached, unreachable
from expansion.common.quiet import quiet_libraries
from expansion.diffusion.families import (
    STABLE_DIFFUSION,
    Pipeline,
    family_of,
    family_of_index,
    text_encoders,
)
from expansion.diffusion.model_configs import check_scheduler, noise_schedule, read_config
from expansion.diffusion.model_files import LARGEST_RESOLUTION, check_model_folder
from expansion.diffusion.weight_files import CONVERSION, PICKLES, weight_variant

MODEL_REMEDY = (
    "copy its folder (2 to 5 GB) from where there is a network, as by: hf download {name} "
    "--local-dir FOLDER, and give --pretrained_model_name_or_path FOLDER; "
    "assets/tiny-sd-digits of this project shows the commands meanwhile"
)
DECODER_REMEDY = (
    "copy its folder (10 MB) from where there is a network, as by: hf download {name} --local-dir "
    "FOLDER, and give --guidance_decoder FOLDER"
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(
    name_or_path: str,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    single_file_config: str | None = None,
    image_unet: bool = False,
) -> Pipeline:
    """Load a checkpoint of any family, frozen and in eval mode, without a safety checker.

    Its scheduler is DDIM with the checkpoint's noise schedule, whatever sampler it names.

    Args:
        name_or_path: Hub id, diffusers folder, or single file.
        dtype: A key of `DTYPES`.
        device: Where the weights go.
        revision: Branch, tag or commit on the hub.
        single_file_config: Diffusers folder whose configs and tokenizer go with a single file.
        image_unet: Whether the U-Net has to take the latents of an image beside its own, as that of
            InstructPix2Pix does.

    Raises:
        InputError: The folder is incomplete, or the hub cannot be reached or lacks the id.
    """
    # Check what can be checked, then load.
    check_model_folder(name_or_path, single_file_config, image_unet)
    try:
        with quiet_libraries():
            if Path(name_or_path).is_file():
                pipeline = _from_single_file(name_or_path, dtype, single_file_config)
            else:
                pipeline = _from_folder(_local_folder(name_or_path, revision, image_unet), dtype)
    except InputError:
        raise
    except Exception as error:  # a damaged config or file makes the libraries fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load the model {name_or_path}: {reason}") from error
    # Make it ready for sampling: DDIM, frozen, on its device.
    _check_parts(pipeline, name_or_path)
    pipeline.scheduler = ddim_scheduler(pipeline)
    for name in family_of(pipeline).networks:
        getattr(pipeline, name).requires_grad_(False).eval()
    _keep_decoder_safe(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if pipeline.device.type == "cuda":  # what tensor cores convolve; no gain was seen on a CPU
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def _local_folder(name_or_path: str, revision: str | None, image_unet: bool) -> str:
    """The folder itself, or the cache folder that a hub's files are downloaded to, once."""
    if Path(name_or_path).is_dir():
        return name_or_path
    options = {"revision": revision, "use_safetensors": True, "safety_checker": None}
    options["local_files_only"] = only_cached(name_or_path)
    try:
        try:
            folder = StableDiffusionPipeline.download(name_or_path, **options)
        except OSError as error:
            if "variant=None" not in str(error):  # diffusers' words where there are no plain files
                raise
            folder = StableDiffusionPipeline.download(name_or_path, variant="fp16", **options)
    except (OSError, ValueError) as error:
        raise hub_failure("model", name_or_path, error, MODEL_REMEDY) from error
    check_model_folder(str(folder), image_unet=image_unet)
    return str(folder)


def _from_folder(folder: str, dtype: str) -> Pipeline:
    """Load a pipeline from a local diffusers folder, each part in the variant that it has."""
    family = family_of_index(read_config(Path(folder, "model_index.json")))
    schedule = read_config(Path(folder, "scheduler", "scheduler_config.json"))
    parts: dict[str, Any] = {"scheduler": _ddim(schedule)}
    for part in family.text_encoders:
        parts[part] = _text_encoder(folder, part, family.classes[part][1], dtype)
    for part, network in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        parts[part] = network.from_pretrained(
            folder,
            subfolder=part,
            variant=weight_variant(Path(folder), part),
            dtype=DTYPES[dtype],
            use_safetensors=True,
        )
    pipeline_class = getattr(diffusers, family.pipeline_class)
    return pipeline_class.from_pretrained(folder, **parts, **family.arguments)


def _from_single_file(path: str, dtype: str, single_file_config: str | None) -> Pipeline:
    """Load a pipeline from one file; without `single_file_config`, its kind is guessed."""
    guess = single_file_config is None
    try:
        with no_vain_requests() if guess else nullcontext():
            return StableDiffusionPipeline.from_single_file(
                path,
                config=single_file_config,
                dtype=DTYPES[dtype],
                local_files_only=not guess,
                **STABLE_DIFFUSION.arguments,
            )
    except Exception as error:  # files of other networks make diffusers fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        # Faults of the file itself.
        if Path(path).suffix in PICKLES and "Unable to load weights" in reason:
            raise InputError(
                f"cannot load {path}: it is damaged or holds more than tensors, which could run "
                "code; give the .safetensors file of this model"
            ) from error
        if "meta tensor" in reason:
            raise InputError(
                f"cannot load {path}: it lacks weights of a network; copy the file again"
            ) from error
        # Faults of the guess, which a folder with configs would mend.
        if not guess:
            raise
        if unreachable():
            reason = f"the configs of its kind were not downloaded before, and {unreachable()}"
        raise InputError(
            f"cannot load {path}: {reason}; for its configs and tokenizer give expand.py a "
            "diffusers folder with the same kind of networks, --single_file_config FOLDER, or "
            f"{CONVERSION.format(name=path)}"
        ) from error


def load_tiny_decoder(name_or_path: str, pipeline: Pipeline) -> AutoencoderTiny:
    """Load a distilled autoencoder (such as TAESD) for the latents of `pipeline`, frozen.

    `name_or_path` is a hub id or a diffusers folder; number format and device are the pipeline's.

    Raises:
        InputError: The decoder cannot be loaded, or makes images of another size.
    """
    is_folder = Path(name_or_path).is_dir()
    try:
        with quiet_libraries():
            decoder = AutoencoderTiny.from_pretrained(
                name_or_path,
                variant=weight_variant(Path(name_or_path), ".") if is_folder else None,
                dtype=weight_dtype(pipeline.vae),
                use_safetensors=True,
                local_files_only=only_cached(name_or_path),
            )
    except (OSError, ValueError) as error:
        raise hub_failure("tiny decoder", name_or_path, error, DECODER_REMEDY) from error
    factor = 2 ** (len(decoder.config.decoder_block_out_channels) - 1)
    if factor != pipeline.vae_scale_factor:
        raise InputError(
            f"the tiny decoder {name_or_path} enlarges latents {factor} times, the checkpoint "
            f"{pipeline.vae_scale_factor} times; give the one that was made for it"
        )
    return decoder.eval().requires_grad_(False).to(pipeline.device)


def _text_encoder(folder: str, part: str, class_name: str, dtype: str) -> nn.Module:
    """Load a text encoder; raises ValueError where weights are missing.

    diffusers' pipelines would fill them with random numbers and say nothing.
    """
    encoder, report = getattr(transformers, class_name).from_pretrained(
        folder,
        subfolder=part,
        variant=weight_variant(Path(folder), part),
        dtype=DTYPES[dtype],
        use_safetensors=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ValueError(f"its {part} lacks {min(report['missing_keys'])}")
    return encoder


def _check_parts(pipeline: Pipeline, name: str) -> None:
    """Raise InputError for parts that lack weights or were not made for each other."""
    family = family_of(pipeline)
    for part in family.networks:
        absent = [
            key for key, value in getattr(pipeline, part).state_dict().items() if value.is_meta
        ]
        require(not absent, f"cannot load the model {name}: its {part} lacks {shown(absent, 1)}")
    unet, vae = pipeline.unet.config, pipeline.vae.config
    encoders = [encoder.config for encoder in text_encoders(pipeline)]
    tokenizers = [getattr(pipeline, part) for part in family.tokenizers]
    width, both = sum(text.hidden_size for text in encoders), " and ".join(family.text_encoders)
    pairs = [
        (unet.out_channels, vae.latent_channels, "latent channels of unet and vae"),
        (unet.cross_attention_dim, width, f"widths of unet and {both}"),
    ]
    for tokenizer in tokenizers:
        window = encoders[0].max_position_embeddings
        pairs.append((tokenizer.model_max_length, window, "token windows"))
    for left, right, meaning in pairs:
        require(
            left == right,
            f"cannot use the model {name}: {meaning} are {brief(left)} and {brief(right)}; give a "
            "text-to-image checkpoint whose parts belong together",
        )
    for part, tokenizer, text in zip(family.text_encoders, tokenizers, encoders, strict=True):
        largest = max(tokenizer.get_vocab().values(), default=0)
        require(
            largest < text.vocab_size,
            f"cannot use the model {name}: its tokenizer has token {largest}, its {part} only "
            f"{text.vocab_size}; copy both from one checkpoint",
        )


def _keep_decoder_safe(pipeline: Pipeline) -> None:
    """Leave the autoencoder in float32 where float16 would overflow, as SDXL's does.

    Its decoder then costs more time, and its images are those that diffusers decodes in float32.
    """
    vae = pipeline.vae
    overflows = family_of(pipeline).decodes_in_float32 and vae.config.get("force_upcast", True)
    if overflows and weight_dtype(vae) == torch.float16:
        vae.to(dtype=torch.float32)


@contextmanager
def in_float32(pipeline: Pipeline) -> Iterator[None]:
    """Inside, all networks have float32; afterwards they have their own number formats again."""
    dtype, dtype_of_vae = pipeline.unet.dtype, weight_dtype(pipeline.vae)
    pipeline.to(dtype=torch.float32)
    try:
        yield
    finally:
        pipeline.to(dtype=dtype)
        pipeline.vae.to(dtype=dtype_of_vae)


def with_scheduler(pipeline: Pipeline, scheduler: SchedulerMixin) -> Pipeline:
    """A pipeline of the same networks with another scheduler; `pipeline` stays as it is."""
    parts = {**pipeline.components, "scheduler": scheduler}
    settings = {**family_of(pipeline).arguments}
    if "force_zeros_for_empty_prompt" in pipeline.config:
        settings["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
    made = type(pipeline)(**{**parts, **settings})
    made.set_progress_bar_config(disable=True)
    return made


def save_pipeline(pipeline: Pipeline, folder: Path, dtype: str) -> None:
    """Write a diffusers folder with weights in `dtype`, a key of `DTYPES`.

    All configs say float32, so that a plain `from_pretrained` gives parts of one dtype. `pipeline`
    is in float32 afterwards.
    """
    with quiet_libraries():
        pipeline.to(dtype=DTYPES[dtype]).save_pretrained(folder, safe_serialization=True)
        pipeline.to(dtype=torch.float32)
    for part in family_of(pipeline).networks:
        path = folder / part / "config.json"
        values = json.loads(path.read_text())
        values.pop("_name_or_path", None)
        if "dtype" in values:
            values["dtype"] = "float32"
        path.write_text(json.dumps(values, indent=2) + "\n")


def ddim_scheduler(pipeline: Pipeline) -> DDIMScheduler:
    """DDIM with the checkpoint's noise schedule, whatever sampler its folder names.

    Raises:
        InputError: The checkpoint's noise schedule does not suit DDIM.
    """
    return _ddim(own_scheduler(pipeline))


def own_scheduler(pipeline: Pipeline) -> Mapping[str, Any]:
    """Config of the scheduler that the checkpoint came with, also where another took its place."""
    scheduler = pipeline.scheduler
    config = getattr(scheduler, "of_checkpoint", scheduler.config)
    return {"_class_name": type(scheduler).__name__, **config}


def _ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """DDIM on the noise schedule in a scheduler's config, without clipping, timesteps from 1."""
    check_scheduler(config, "the checkpoint's scheduler")
    try:
        scheduler = DDIMScheduler(
            **noise_schedule(config), steps_offset=1, clip_sample=False, thresholding=False
        )
        scheduler.of_checkpoint = dict(config)
        return scheduler
    except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError among them
        reason = str(error).splitlines()[0]
        raise InputError(f"the checkpoint's noise schedule cannot be used: {reason}") from error


def default_resolution(pipeline: Pipeline) -> int:
    """Side in pixels that the U-Net was trained for."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def usable_resolution(pipeline: Pipeline, resolution: int | None) -> int:
    """Side of images in pixels: the one given, or that which the U-Net was trained for.

    Raises:
        InputError: It is no multiple of the factor by which latents are smaller than images, or out
            of range.
    """
    if resolution is None:
        return default_resolution(pipeline)
    factor = pipeline.vae_scale_factor
    require(
        resolution > 0 and resolution % factor == 0,
        f"resolution {resolution}: give a multiple of {factor}, as the autoencoder of this "
        "checkpoint makes",
    )
    require(
        resolution <= LARGEST_RESOLUTION,
        f"resolution {resolution}: give at most {LARGEST_RESOLUTION} pixels",
    )
    return resolution


def weight_dtype(network: nn.Module) -> torch.dtype:
    """Number format of the first weight; diffusers' `dtype` takes 1 ms to look at all of them."""
    return next(network.parameters()).dtype
