"""Stable Diffusion checkpoints as files: completeness and identity. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expansion.config import JSON_ERRORS, PROJECT_ROOT, require
from expansion.errors import InputError, brief
from expansion.records import shown

# Component -> the only classes that are loaded. A model_index.json may name others, of any library,
# or code that lies in the folder, which diffusers refuses only once it loads.
CLASSES = {
    "scheduler": ("diffusers", r"\w+Scheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer(Fast)?"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
LARGEST_RESOLUTION = 16_384  # pixels
LARGEST_SIZE = 1_000_000  # number of channels, tokens or steps in a config
LARGEST_DEPTH = 256  # number of layers in it
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
    _check_files(folder)
    _check_index(folder / "model_index.json")
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    check_scheduler(_read_config(scheduler_file), str(scheduler_file))
    for part in weights:
        _read_config(folder / part / "config.json")
    model_resolution(name_or_path)


def _check_files(folder: Path) -> None:
    """Refuse what a library would wait for for ever: a pipe, a device, a link to nothing."""
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        require(path.is_file() or path.is_dir(), f"{path} is no file; copy the whole folder again")


def _check_index(path: Path) -> None:
    """Refuse a model_index.json that names other classes than those of Stable Diffusion."""
    index = _read_config(path)
    for part, (library, name) in CLASSES.items():
        named = index.get(part)
        fits = isinstance(named, list) and len(named) == 2 and named[0] == library
        fits = fits and isinstance(named[1], str) and re.fullmatch(name, named[1])
        require(
            bool(fits),
            f"{path}: its {part} is {brief(named)}, not one of {library} that Stable Diffusion 1.x "
            "or 2.x has; give another checkpoint",
        )
    custom = [
        part for part in sorted(index) if not part.startswith("_") and _is_foreign(index[part])
    ]
    require(
        isinstance(index.get("_class_name"), str) and not custom,
        f"{path} names code of its own ({shown(custom) or '_class_name'}); give a checkpoint of "
        "Stable Diffusion 1.x or 2.x",
    )


def _is_foreign(value: Any) -> bool:
    """Whether an entry of a model_index.json would be imported from elsewhere."""
    known = (None, "diffusers", "transformers", "stable_diffusion")
    return isinstance(value, list) and (len(value) != 2 or value[0] not in known)


def _read_config(path: Path) -> dict[str, Any]:
    """A component's JSON object. Raises InputError for damage and for sizes beyond any use."""
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
            f"{name}: prediction_type {brief(prediction_type)} is not one of "
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
        for path in sorted(p for p in (folder / part).glob("*") if p.is_file()):
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
    unet, vae = (_read_config(folder / part / "config.json") for part in ("unet", "vae"))
    size, channels = unet.get("sample_size"), vae.get("block_out_channels")
    require(
        type(size) is int and isinstance(channels, list) and 0 < len(channels) < 10,
        f"{folder}: sample_size {brief(size)} of its unet and block_out_channels {brief(channels)} "
        "of its vae give no resolution; copy the whole folder again",
    )
    resolution = size * 2 ** (len(channels) - 1)
    require(
        0 < resolution <= LARGEST_RESOLUTION,
        f"{folder}: its configs give a resolution of {resolution} pixels; copy it again",
    )
    return resolution


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's content, shortened."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
