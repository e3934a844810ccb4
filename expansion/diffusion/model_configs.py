"""Checks of a checkpoint's JSON files before its weights load; imports no torch.

This project gives a U-Net noisy latents, a timestep, text embeddings and, with SDXL, the sizes of
the image. Checkpoints whose configs ask for anything else are refused. Of a scheduler's config only
what describes the model is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS, InputError, brief, require, shown
from expansion.diffusion.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Family
from expansion.diffusion.sampler_config import TIMESTEP_SPACINGS

LARGEST_SIZE = 1_000_000  # number of channels, tokens or steps in a config
LARGEST_DEPTH = 256  # number of layers in it
PREDICTION_TYPES = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "timestep_spacing",
)
# Key of a U-Net's config -> what a U-Net with it needs beside latents, timestep and text.
UNET_NEEDS = {
    "class_embed_type": "class labels or an image embedding, as in Stable unCLIP",
    "num_class_embeds": "class labels, as in the x4 upscaler",
    "addition_embed_type": "added embeddings, as in Stable Diffusion XL",
    "encoder_hid_dim_type": "projected embeddings, as with an IP-Adapter or in Kandinsky",
    "encoder_hid_dim": "projected embeddings, as in DeepFloyd IF",
    "dual_cross_attention": "an image beside the text, as in Versatile Diffusion",
}
# Latent channels that a U-Net takes -> which kind it is then.
OTHER_INPUTS = {
    5: "a depth map beside the latents (depth2img)",
    7: "a low-resolution image beside the latents (x4 upscaler)",
    8: "an image beside the latents (InstructPix2Pix, latent upscaler)",
    9: "a mask and a masked image beside the latents (inpainting)",
}
IMAGE_UNETS = "a checkpoint of InstructPix2Pix, such as timbrooks/instruct-pix2pix,"
REMEDY = "give a text-to-image checkpoint of Stable Diffusion 1.x, 2.x or XL"
NUM_SIZES = 6  # numbers about an image that SDXL's base takes


def read_config(path: Path) -> dict[str, Any]:
    """Read the JSON object that describes a component.

    Raises:
        InputError: It is damaged, or names sizes that no network has.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *JSON_ERRORS) as error:
        raise InputError(f"cannot read {path}: {error}; copy the whole folder again") from error
    require(isinstance(config, dict), f"{path}: expected an object, got {brief(config)}")
    for key, value in config.items():
        largest = LARGEST_DEPTH if "layers" in key else LARGEST_SIZE
        for number in value if isinstance(value, list) else [value]:
            fits = not isinstance(number, int) or abs(number) <= largest
            require(fits, f"{path}: {key} is {brief(number)}; copy the whole folder again")
    return config


def noise_schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a scheduler's config that describes the model.

    These are the noise variances, what the U-Net predicts, which timesteps it is made for
    (`timestep_spacing`) and the noise that its latents end with (`set_alpha_to_one`). With these,
    and with latents not clipped and timesteps that start at 1, DDIM equals diffusers' img2img.
    Everything else (algorithm, order, spacing of sigmas, clipping, thresholding) says how another
    program took its steps, and is left out.
    """
    defaults = config.get("_use_default_values") or ()  # another scheduler's, as diffusers sees it
    return {key: config[key] for key in SCHEDULE_KEYS if key in config and key not in defaults}


def check_scheduler(config: Mapping[str, Any], name: str) -> None:
    """Raise InputError unless DDIM can run, forward and backward, on this noise schedule.

    Args:
        config: A diffusers scheduler's config.
        name: Where it comes from, for the message.
    """
    if config.get("use_flow_sigmas") or not {"beta_schedule", "trained_betas"} & set(config):
        raise InputError(
            f"{name}: {config.get('_class_name', 'the scheduler')} has no noise variances (betas), "
            "so DDIM cannot run on it; use a checkpoint of Stable Diffusion 1.x, 2.x or XL"
        )
    require(
        config.get("timestep_type", "discrete") == "discrete",
        f"{name}: timestep_type {brief(config.get('timestep_type'))}: the U-Net takes noise levels "
        f"in place of the numbers of timesteps; {REMEDY}",
    )
    predicted = config.get("prediction_type", "epsilon")
    if config.get("predict_epsilon", True) is not True:  # how old files say "sample"
        predicted = "sample"
    choices = (
        ("prediction_type", predicted, PREDICTION_TYPES),
        ("beta_schedule", config.get("beta_schedule", "linear"), BETA_SCHEDULES),
        ("timestep_spacing", config.get("timestep_spacing", "leading"), TIMESTEP_SPACINGS),
    )
    for key, value, known in choices:
        if value not in known:
            raise InputError(f"{name}: {key} {brief(value)} is not one of {', '.join(known)}")
    if config.get("thresholding"):
        raise InputError(
            f"{name}: thresholding is for pixels and cannot be inverted on latents; set it to false"
        )
    for key in ("rescale_betas_zero_snr", "set_alpha_to_one"):
        value = config.get(key, False)
        require(type(value) is bool, f"{name}: {key} {brief(value)} is neither true nor false")
    _check_betas(config, name)


def _check_betas(config: Mapping[str, Any], name: str) -> None:
    """Raise InputError for noise variances (betas) that make no schedule."""
    steps = config.get("num_train_timesteps", 1000)
    require(
        type(steps) is int and steps > 0, f"{name}: num_train_timesteps {brief(steps)} is no count"
    )
    trained = config.get("trained_betas")
    if trained is not None:
        fits = isinstance(trained, list | tuple) and len(trained) == steps
        fits = fits and all(type(beta) in (int, float) and 0 < beta <= 1 for beta in trained)
        require(fits, f"{name}: trained_betas are not {steps} numbers above 0 and at most 1")
        return
    for key, default in (("beta_start", 0.0001), ("beta_end", 0.02)):
        beta = config.get(key, default)
        fits = type(beta) in (int, float) and 0 < beta < 1
        require(fits, f"{name}: {key} {brief(beta)} is no number between 0 and 1")


def check_networks(folder: Path, family: Family, image_unet: bool = False) -> None:
    """Raise InputError for networks that need other inputs, or were not made for each other.

    Args:
        folder: Diffusers folder.
        family: Its family.
        image_unet: Whether the U-Net has to take the latents of an image beside its own.
    """
    unet, vae = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
    # The U-Net asks for nothing that its family is not given.
    given = {"addition_embed_type": "text_time"} if family is STABLE_DIFFUSION_XL else {}
    for key, need in UNET_NEEDS.items():
        value = unet.get(key)
        require(
            value is None or value is False or given.get(key) == value,
            f"cannot load the model {folder}: its unet needs {need} ({key} {brief(value)}); "
            f"{REMEDY}",
        )
    # It takes and predicts the autoencoder's latents, and nothing beside them but an image's.
    latents = vae.get("latent_channels", 4)
    channels = unet.get("in_channels", 4)
    need = OTHER_INPUTS.get(
        channels if type(channels) is int else 0, "other latents than its vae's"
    )
    require(
        not image_unet or family is STABLE_DIFFUSION,
        f"the model {folder} is of {family.title}; this method needs {IMAGE_UNETS} as a diffusers "
        "folder or hub id",
    )
    require(
        not image_unet or channels == 2 * latents,
        f"the model {folder} cannot edit images: its unet takes {brief(channels)} channels, not "
        f"{brief(2 * latents)}; this method needs {IMAGE_UNETS} as a diffusers folder or hub id",
    )
    require(
        image_unet or channels == latents,
        f"cannot load the model {folder}: its unet takes {brief(channels)} channels, its vae makes "
        f"{brief(latents)}, so it needs {need}; {REMEDY}",
    )
    made = unet.get("out_channels", 4)
    require(
        made == latents,
        f"cannot load the model {folder}: its unet predicts {brief(made)} channels from "
        f"{brief(channels)}, so variances too, or other latents; {REMEDY}",
    )
    _check_autoencoder(folder, vae)
    _check_texts(folder, family, unet)


def _check_autoencoder(folder: Path, vae: Mapping[str, Any]) -> None:
    """Raise InputError unless it maps RGB images to latents that are scaled, and not moved."""
    for key in ("in_channels", "out_channels"):
        value = vae.get(key, 3)
        require(
            value == 3,
            f"cannot load the model {folder}: {key} of its vae is {brief(value)}, but images are "
            f"RGB; {REMEDY}",
        )
    shifted = [key for key in ("shift_factor", "latents_mean", "latents_std") if vae.get(key)]
    require(
        not shifted,
        f"cannot load the model {folder}: its vae moves latents by {shown(shifted)}, as newer "
        f"models do; {REMEDY}",
    )
    factor = vae.get("scaling_factor", 0.18215)
    require(
        type(factor) in (int, float) and math.isfinite(factor) and factor > 0,
        f"cannot load the model {folder}: scaling_factor of its vae is {brief(factor)}; copy the "
        "whole folder again",
    )


def _check_texts(folder: Path, family: Family, unet: Mapping[str, Any]) -> None:
    """Raise InputError unless U-Net and text encoders belong together."""
    configs = [read_config(folder / part / "config.json") for part in family.text_encoders]
    named = " and ".join(family.text_encoders)
    wanted, each = unet.get("cross_attention_dim", 1280), [c.get("hidden_size") for c in configs]
    made = sum(each) if all(type(size) is int for size in each) else each[0]
    require(
        made is None or wanted == made,
        f"cannot load the model {folder}: its unet looks at texts of width {brief(wanted)}, its "
        f"{named} makes {brief(made)}; copy both from one checkpoint",
    )
    if family is not STABLE_DIFFUSION_XL:
        return
    require(
        unet.get("addition_embed_type") == "text_time",
        f"cannot load the model {folder}: it has two text encoders, but its unet takes no sizes of "
        f"images (addition_embed_type {brief(unet.get('addition_embed_type'))}); copy both from "
        "one checkpoint",
    )
    widths = configs[-1].get("projection_dim", 512), unet.get("addition_time_embed_dim")
    known = all(type(width) is int for width in widths)
    added = widths[0] + NUM_SIZES * widths[1] if known else None
    require(
        added is not None and unet.get("projection_class_embeddings_input_dim") == added,
        f"cannot load the model {folder}: its unet takes "
        f"{brief(unet.get('projection_class_embeddings_input_dim'))} numbers beside the text, "
        f"its text_encoder_2 and {NUM_SIZES} sizes make {brief(added)}; give a base of "
        f"{family.title}, whose parts belong together",
    )
