"""Stable Diffusion checkpoints as files: completeness and identity. Imports no torch.

A checkpoint is a diffusers folder, a hub id, or one file as other programs write it. A hub id
cannot be checked until it is loaded. The configs and the tokenizer that go with one file come from
a diffusers folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from expansion.common.config import PROJECT_ROOT
from expansion.common.errors import InputError, brief, require, shown
from expansion.common.files import file_fingerprint
from expansion.diffusion.families import STABLE_DIFFUSION_XL, Family, family_of_index
from expansion.diffusion.model_configs import (
    IMAGE_UNETS,
    check_networks,
    check_scheduler,
    read_config,
)
from expansion.diffusion.sampler_config import OWN_SOLVERS, SamplerConfig
from expansion.diffusion.solver_checks import check_guidance, check_steps, distillation_warnings
from expansion.diffusion.weight_files import (
    LORA_FILE,
    SINGLE_FILES,
    check_single_file,
    weight_files,
)
from expansion.images.file_trees import walk

UNUSED = ("safety_checker", "feature_extractor")  # parts that change no image
logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=SamplerConfig)

LARGEST_RESOLUTION = 16_384  # pixels
ZEROS_FOR_EMPTY = "force_zeros_for_empty_prompt"  # of SDXL: the empty text is zeros; usually true
XL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"


def locate_model(name_or_path: str) -> str:
    """`name_or_path`, or the same path below this project if the working folder lacks it."""
    in_project = PROJECT_ROOT / name_or_path
    if not Path(name_or_path).exists() and in_project.is_dir():
        return str(in_project)
    return name_or_path


def check_model_folder(
    name_or_path: str, single_file_config: str | None = None, image_unet: bool = False
) -> None:
    """Raise InputError for a local checkpoint that is incomplete or unsuitable; hub ids pass.

    Args:
        name_or_path: Diffusers folder, single file or hub id.
        single_file_config: Diffusers folder whose configs and tokenizer go with a single file.
        image_unet: Whether the U-Net has to take the latents of an image beside its own.
    """
    path = Path(name_or_path)
    require(
        single_file_config is None or path.is_file(),
        f"--single_file_config {single_file_config} goes with a checkpoint in one file, which "
        f"{name_or_path} is not; leave it out",
    )
    if path.is_file():
        require(
            not image_unet,
            f"{name_or_path} is a checkpoint in one file; this method needs {IMAGE_UNETS} as a "
            "diffusers folder or hub id",
        )
        check_single_file(path)
        if single_file_config is not None:
            _check_configs(Path(single_file_config))
    elif path.is_dir():
        _check_folder(path, image_unet)
    elif (
        path.is_absolute()
        or name_or_path.startswith((".", "~"))
        or name_or_path.count("/") != 1
        or path.suffix in SINGLE_FILES
    ):
        raise InputError(
            f"model folder {name_or_path} does not exist; give a diffusers folder, a single "
            ".safetensors file or a hub id such as CompVis/stable-diffusion-v1-4"
        )


def check_model_steps(name_or_path: str, config: SamplerConfig) -> None:
    """Raise InputError if the steps of `config` cannot be taken on a checkpoint's noise schedule.

    Args:
        name_or_path: Checkpoint; only diffusers folders are checked, others pass.
        config: Number of steps, strength and solver.
    """
    schedule = _config_of(name_or_path, "scheduler")
    if schedule:
        check_steps(schedule, config, name_or_path)


def takes_guidance(name_or_path: str) -> bool:
    """Whether the U-Net of a diffusers folder takes the guidance scale as an input."""
    return _config_of(name_or_path, "unet").get("time_cond_proj_dim") is not None


def require_undistilled(name_or_path: str) -> None:
    """Raise InputError for a diffusers folder that a diffusion loss would spoil."""
    named = _config_of(name_or_path, "scheduler").get("_class_name")
    require(
        not takes_guidance(name_or_path) and named not in OWN_SOLVERS,
        f"{name_or_path} was distilled to take few steps, which training on the noise of single "
        "steps would undo; train adapters on the checkpoint that it was distilled from",
    )


def _config_of(name_or_path: str, part: str) -> dict[str, Any]:
    """The config of a diffusers folder's scheduler or network; empty for other checkpoints."""
    path = Path(name_or_path, part, f"{'scheduler_' if part == 'scheduler' else ''}config.json")
    return read_config(path) if path.is_file() else {}


def settled(name_or_path: str, config: Config) -> Config:
    """The settings of denoising as they count for a checkpoint: the solver is decided.

    Warnings tell of settings that spoil the images of a distilled model.

    Args:
        name_or_path: Checkpoint. Only diffusers folders are read; for all others the solver is
            ddim unless another is given.
        config: Number of steps, strength, solver and guidance.

    Raises:
        InputError: The steps cannot be taken on the checkpoint's noise schedule, or its U-Net has
            no use for a setting of guidance.
    """
    schedule, unet = (_config_of(name_or_path, part) for part in ("scheduler", "unet"))
    config = config.on_checkpoint(schedule)
    check_model_steps(name_or_path, config)
    check_guidance(unet, config, name_or_path)
    for line in distillation_warnings(schedule, unet, config, name_or_path):
        logger.warning(line)
    return config


def _check_folder(folder: Path, image_unet: bool) -> None:
    """Raise InputError unless the folder holds all parts of a usable model, with their weights."""
    require(
        (folder / "model_index.json").is_file() or not (folder / LORA_FILE).is_file(),
        f"{folder} holds a LoRA ({LORA_FILE}), no checkpoint: expand.py takes it as --lora "
        f"{folder} beside the checkpoint that it was trained on",
    )
    family = folder_family(folder)
    missing = [
        f"{part}/*.safetensors"
        for part in family.networks
        if (folder / part).is_dir()
        and not any((folder / part).glob("*.safetensors"))
        and not any((folder / part).glob("*.bin"))
    ]
    _check_configs(folder, missing, image_unet)
    for part in family.networks:
        weight_files(folder, part)


def _check_configs(folder: Path, further: Iterable[str] = (), image_unet: bool = False) -> None:
    """Raise InputError unless the folder holds all parts, with configs that this project can use.

    Args:
        folder: Diffusers folder, with or without weights.
        further: What else is known to be missing, for the same message.
        image_unet: As in `check_model_folder`.
    """
    family = folder_family(folder)
    missing = [part for part in family.components if not (folder / part).is_dir()]
    missing += further
    if missing:
        raise InputError(
            f"the checkpoint {folder} lacks {', '.join(missing)}; copy the whole folder again"
        )
    _check_files(folder)
    _check_index(folder / "model_index.json", family)
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    check_scheduler(read_config(scheduler_file), str(scheduler_file))
    check_networks(folder, family, image_unet)
    model_resolution(str(folder))


def folder_family(folder: Path) -> Family:
    """The family of a diffusers folder.

    Raises:
        InputError: It is no diffusers folder, or that of a refiner.
    """
    path = folder / "model_index.json"
    require(
        path.is_file(),
        f"{folder} has no model_index.json, so it is no diffusers checkpoint; give a diffusers "
        "folder, or one .safetensors file that holds the whole checkpoint",
    )
    index = read_config(path)
    family = family_of_index(index)
    is_refiner = family is STABLE_DIFFUSION_XL and (
        index.get("requires_aesthetics_score") is True
        or index.get("text_encoder") in (None, [None, None])
    )
    require(
        not is_refiner,
        f"{folder} is a refiner of Stable Diffusion XL, which has no first text encoder and only "
        f"finishes images of a base; give the base, such as {XL_BASE}",
    )
    return family


def _check_files(folder: Path) -> None:
    """Refuse pipes, devices and dangling links, for which a library would wait for ever."""
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        require(path.is_file() or path.is_dir(), f"{path} is no file; copy the whole folder again")


def _check_index(path: Path, family: Family) -> None:
    """Refuse a model_index.json that names other classes than those of its family."""
    index = read_config(path)
    for part, (library, name) in family.classes.items():
        named = index.get(part)
        fits = isinstance(named, list) and len(named) == 2 and named[0] == library
        fits = fits and isinstance(named[1], str) and re.fullmatch(name, named[1])
        require(
            bool(fits),
            f"{path}: its {part} is {brief(named)}, not one of {library} that {family.title} has; "
            "give another checkpoint",
        )
    custom = [
        part for part in sorted(index) if not part.startswith("_") and _is_foreign(index[part])
    ]
    require(
        isinstance(index.get("_class_name"), str) and not custom,
        f"{path} names code of its own ({shown(custom) or '_class_name'}); give a checkpoint of "
        "Stable Diffusion 1.x, 2.x or XL",
    )
    further = [
        part
        for part, named in sorted(index.items())
        if isinstance(named, list) and named[0] and part not in (*family.classes, *UNUSED)
    ]
    require(
        not further,
        f"{path}: a {index['_class_name']} needs more than text ({shown(further)}); give a "
        "text-to-image checkpoint of Stable Diffusion 1.x, 2.x or XL",
    )


def _is_foreign(value: Any) -> bool:
    """Whether an entry of a model_index.json would be imported from elsewhere."""
    known = (None, "diffusers", "transformers", "stable_diffusion")
    return isinstance(value, list) and (len(value) != 2 or value[0] not in known)


def model_fingerprint(
    name_or_path: str, revision: str | None = None, single_file_config: str | None = None
) -> str:
    """Identity of a checkpoint: the hub id with revision, or a hash over the files that are loaded.

    The hash covers name, size and content of every file; of the content of files above 1 MiB it
    covers 16 evenly spaced blocks of 64 KiB. A training step changes all weights, so these suffice.

    Args:
        name_or_path: Diffusers folder, single file or hub id.
        revision: Branch, tag or commit of a hub id.
        single_file_config: Diffusers folder whose configs and tokenizer go with a single file.
    """
    path = Path(name_or_path)
    if path.is_file():
        files = {"single file": path}  # wherever it lies and whatever it is called
        if single_file_config is not None:
            files |= _loaded_files(Path(single_file_config), with_weights=False)
    elif path.is_dir():
        files = _loaded_files(path, with_weights=True)
    else:
        return f"{name_or_path}@{revision or 'main'}"
    digest = hashlib.sha256()
    for name, file in files.items():
        _add_to(digest, name, file)
    # What the index itself decides, unless it has the usual value.
    if path.is_dir() and read_config(path / "model_index.json").get(ZEROS_FOR_EMPTY) is False:
        digest.update(ZEROS_FOR_EMPTY.encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def _loaded_files(folder: Path, with_weights: bool) -> dict[str, Path]:
    """`<component>/<file>` -> path: networks' configs and weights, and all files of the others."""
    files: list[Path] = []
    family = folder_family(folder)
    for part in family.components:
        if part in family.networks:
            weights = weight_files(folder, part) if with_weights else []
            files += sorted([folder / part / "config.json", *weights])
        else:
            files += sorted(path for path in (folder / part).glob("*") if path.is_file())
    return {f"{path.parent.name}/{path.name}": path for path in files}


def _add_to(digest: hashlib._Hash, name: str, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{name}:{size};".encode())
    with path.open("rb") as file:
        if size <= 1 << 20:
            digest.update(file.read())
            return
        for i in range(16):
            file.seek(i * (size - (1 << 16)) // 15)
            digest.update(file.read(1 << 16))


def model_resolution(name_or_path: str) -> int:
    """Side in pixels that a diffusers folder was trained for; 512 is assumed for all others."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return 512
    unet, vae = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
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


def check_resolution(name_or_path: str, resolution: int | None) -> None:
    """Raise InputError for images that a checkpoint's autoencoder cannot make.

    Args:
        name_or_path: Diffusers folder; for others the factor of all published ones, 8, counts.
        resolution: Side of the images, pixels; None: the checkpoint's own.
    """
    channels = _config_of(name_or_path, "vae").get("block_out_channels")
    factor = 2 ** (len(channels) - 1) if isinstance(channels, list) else 8
    require(
        resolution is None or (resolution > 0 and resolution % factor == 0),
        f"resolution {resolution}: give a multiple of {factor}, as the autoencoder of "
        f"{name_or_path} makes",
    )


def text_width(name_or_path: str) -> int | None:
    """Width of the texts that a diffusers folder's U-Net looks at; None for all others."""
    path = Path(name_or_path, "unet", "config.json")
    width = read_config(path).get("cross_attention_dim", 1280) if path.is_file() else None
    return width if type(width) is int else None


def folder_fingerprint(folder: str | Path) -> str:
    """SHA-256 of names and contents of all files below a folder, shortened; litter is left out."""
    tree = walk(Path(folder))
    digest = hashlib.sha256()
    for path in sorted([*tree.images, *tree.others]):
        digest.update(os.fsencode(path.relative_to(folder)) + file_fingerprint(path).encode())
    return f"sha256:{digest.hexdigest()[:16]}"
