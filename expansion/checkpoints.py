"""Stable Diffusion checkpoints as files: completeness and identity. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expansion.config import PROJECT_ROOT
from expansion.errors import InputError

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
PREDICTION_TYPES = ("epsilon", "v_prediction")


def locate_model(name_or_path: str) -> str:
    """`name_or_path`, or the same path below this project if the working folder lacks it."""
    in_project = PROJECT_ROOT / name_or_path
    if not Path(name_or_path).exists() and in_project.is_dir():
        return str(in_project)
    return name_or_path


def check_model_folder(name_or_path: str) -> None:
    """Raise InputError when a local checkpoint folder lacks a component; hub ids pass."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        if folder.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") != 1:
            raise InputError(
                f"model folder {name_or_path} does not exist; give a diffusers folder or a hub id "
                "such as CompVis/stable-diffusion-v1-4"
            )
        return
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{folder} has no model_index.json, so it is no diffusers checkpoint; a single-file "
            "checkpoint must be converted first (diffusers' from_single_file, then save_pretrained)"
        )
    missing = [part for part in COMPONENTS if not (folder / part).is_dir()]
    weights = [part for part in ("text_encoder", "unet", "vae") if part not in missing]
    missing += [
        f"{part}/*.safetensors"
        for part in weights
        if not any((folder / part).glob("*.safetensors"))
    ]
    if missing:
        raise InputError(
            f"the checkpoint {folder} lacks {', '.join(missing)}; copy the whole folder again"
        )
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    try:
        check_scheduler(json.loads(scheduler_file.read_text()), str(scheduler_file))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {scheduler_file}: {error}") from error


def check_scheduler(config: Mapping[str, Any], name: str) -> None:
    """Raise InputError unless DDIM can run, forward and backward, on this noise schedule.

    Args:
        config: A diffusers scheduler's config.
        name: Where it comes from, for the message.
    """
    if not {"beta_schedule", "trained_betas"} & set(config):
        raise InputError(
            f"{name}: {config.get('_class_name', 'the scheduler')} has no noise variances (betas), "
            "so DDIM cannot run on it; use a Stable Diffusion 1.x or 2.x checkpoint"
        )
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise InputError(
            f"{name}: prediction_type {prediction_type!r} is not one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    if config.get("thresholding"):
        raise InputError(
            f"{name}: thresholding is for pixels and cannot be inverted on latents; set it to false"
        )


def model_fingerprint(name_or_path: str, revision: str | None = None) -> str:
    """Identity of a checkpoint: the hub id with revision, or a hash over a local folder's files.

    Of every file, name and size are hashed, with its content or, above 1 MiB, 16 evenly spaced
    blocks of 64 KiB; a training step changes all weights, so these suffice.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return f"{name_or_path}@{revision or 'main'}"
    digest = hashlib.sha256()
    for part in COMPONENTS:
        for path in sorted((folder / part).glob("*")):
            size = path.stat().st_size
            digest.update(f"{part}/{path.name}:{size};".encode())
            with path.open("rb") as file:
                if size <= 1 << 20:
                    digest.update(file.read())
                    continue
                for i in range(16):
                    file.seek(i * (size - (1 << 16)) // 15)
                    digest.update(file.read(1 << 16))
    return f"sha256:{digest.hexdigest()[:16]}"


def model_resolution(name_or_path: str) -> int:
    """Side in pixels that a local checkpoint was trained for; 512 for hub ids, unseen."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return 512
    unet, vae = (
        json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae")
    )
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's content, shortened."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
