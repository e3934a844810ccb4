"""Files of weights: which ones of a folder are loaded, and what a safetensors header says.

The weights of a component are one file, or several with an index. Both may be a variant such as
`diffusion_pytorch_model.fp16.safetensors`. Imports no torch.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS, InputError, brief, require
from expansion.diffusion.model_configs import OTHER_INPUTS, REMEDY, read_config

STEMS = {  # part -> name of its weights without variant, shard number and suffix
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    ".": "diffusion_pytorch_model",  # a network that is a folder of its own
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SINGLE_FILES = (".safetensors", *PICKLES)
LORA_FILE = "pytorch_lora_weights.safetensors"
# Which of the two factors of a layer a tensor is, and the other one.
LORA_FACTOR = re.compile(r"(?<=lora[._])(?:down|up|A|B)\b|(?<=lora_linear_layer\.)(?:down|up)\b")
PARTNER = {"down": "up", "up": "down", "A": "B", "B": "A"}
FOREIGN_ADAPTERS = re.compile(r"\.(?:dora_scale|lora_magnitude|lora_mid|hada_|lokr_|oft_)")
LARGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
CONVERSION = (
    'convert it where there is a network: python -c "from diffusers import StableDiffusionPipeline '
    "as P; P.from_single_file('{name}').save_pretrained('FOLDER')\", and give the folder"
)


XL_CONVERSION = CONVERSION.replace("StableDiffusion", "StableDiffusionXL")


def weight_variant(folder: Path, part: str) -> str | None:
    """Which variant of a component's weights to load; None means the plain files, if they exist.

    Args:
        folder: Diffusers folder.
        part: A key of `STEMS`.

    Raises:
        InputError: There are no weights, or only several variants of which none is fp16.
    """
    stem = STEMS[part]
    names = {path.name for path in (folder / part).glob(f"{stem}*") if path.is_file()}
    if names & {f"{stem}.safetensors", f"{stem}.safetensors.index.json"}:
        return None
    pattern = rf"{stem}\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)"
    variants = {match[1] or match[2] for name in names if (match := re.fullmatch(pattern, name))}
    if not variants:
        pickled = sorted(path.name for path in (folder / part).glob("*.bin"))
        known = (
            f"; {pickled[0]} is a pickle and is not loaded, save as safetensors" if pickled else ""
        )
        raise InputError(
            f"the checkpoint {folder} lacks {part}/*.safetensors ({stem}.safetensors, or a variant "
            f"such as {stem}.fp16.safetensors){known or '; copy the whole folder again'}"
        )
    if len(variants) > 1 and "fp16" not in variants:
        raise InputError(
            f"{folder / part} has the variants {', '.join(sorted(variants))}; leave one of them"
        )
    return "fp16" if "fp16" in variants else variants.pop()


def weight_files(folder: Path, part: str) -> list[Path]:
    """The files of a component's weights that are loaded, sorted: one, or an index and its shards.

    Args:
        folder: Diffusers folder.
        part: A key of `STEMS`.

    Raises:
        InputError: A file is missing, or the index names files outside the component's folder.
    """
    stem, variant = STEMS[part], weight_variant(folder, part)
    middle = f".{variant}" if variant else ""
    single = folder / part / f"{stem}{middle}.safetensors"
    if single.is_file():
        return [single]
    index = folder / part / f"{stem}.safetensors.index{middle}.json"
    shards = read_config(index).get("weight_map")
    require(isinstance(shards, dict) and bool(shards), f"{index} names no files; copy it again")
    paths = []
    for name in sorted(set(map(str, shards.values()))):
        path = folder / part / name
        require(Path(name).name == name, f"{index} names {brief(name)}, which lies elsewhere")
        require(path.is_file(), f"the checkpoint {folder} lacks {part}/{name}; copy it again")
        paths.append(path)
    return sorted([index, *paths])


def safetensors_header(path: Path) -> Mapping[str, Any]:
    """Name -> description (such as the shape) of the tensors in a safetensors file.

    Raises:
        InputError: It is another kind of file, or damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            require(length <= min(LARGEST_HEADER, path.stat().st_size), f"{path}: no header")
            header = json.loads(file.read(length))
    except (OSError, *JSON_ERRORS) as error:
        raise InputError(f"{path} is no safetensors file, or is damaged; copy it again") from error
    fits = isinstance(header, dict) and all(isinstance(v, dict) for v in header.values())
    require(fits, f"{path} is no safetensors file, or is damaged; copy it again")
    return {key: value for key, value in header.items() if key != "__metadata__"}


def num_lora_layers(names: Iterable[str]) -> int:
    """How many layers a LoRA with tensors of these names adapts (diffusers, kohya or peft)."""
    return sum(match[0] in ("down", "A") for name in names if (match := LORA_FACTOR.search(name)))


def _check_lora_tensors(names: Collection[str], path: Path) -> None:
    """Raise InputError for adapters of another kind, or without one of their two factors."""
    foreign = [name for name in sorted(names) if FOREIGN_ADAPTERS.search(name)]
    require(
        not foreign,
        f"--lora {path} holds {foreign[0] if foreign else ''}, as adapters do that are no plain "
        "LoRA (DoRA, LoHa, LoKr, a middle factor); give a plain one",
    )
    alone = [
        name
        for name in sorted(names)
        if (match := LORA_FACTOR.search(name))
        and f"{name[: match.start()]}{PARTNER[match[0]]}{name[match.end() :]}" not in names
    ]
    alone = [name for name in alone if not name.endswith(".bias")]  # of the second factor alone
    require(
        not alone,
        f"--lora {path} has {alone[0] if alone else ''} without its other factor; copy it again",
    )


def lora_text_width(header: Mapping[str, Any]) -> int | None:
    """Width of the texts that a LoRA's cross-attention looks at; None if it adapts none.

    Args:
        header: Of its safetensors file.
    """
    for name, described in header.items():
        if re.search(r"attn2[._](processor[._])?to_[kv]([._]|_lora[._])", name):
            shape = described.get("shape")
            if num_lora_layers([name]) and isinstance(shape, list) and len(shape) >= 2:
                return shape[1]
    return None


def check_single_file(path: Path) -> None:
    """Raise InputError unless `path` looks like a whole SD-1.x or 2.x checkpoint in one file.

    A pickle is not opened here; loading reads it with weights_only.
    """
    if path.suffix != ".safetensors":
        require(
            path.suffix in PICKLES and (zipfile.is_zipfile(path) or _first_byte(path) == b"\x80"),
            f"{path} is no checkpoint; give a diffusers folder, a .safetensors file or a hub id",
        )
        return
    # The names of the tensors tell what kind of file it is.
    header = safetensors_header(path)
    require(
        not num_lora_layers(header),
        f"{path} is a LoRA, no checkpoint: give it as --lora beside the checkpoint that it is for",
    )
    names = header.keys()
    require(
        FIRST_CONV in header,
        f"{path} is no Stable Diffusion checkpoint in one file (it lacks {FIRST_CONV}); give one "
        "with all parts, or a diffusers folder, to which diffusers' from_single_file and "
        "save_pretrained convert one",
    )
    # A larger relative of Stable Diffusion, or a U-Net that needs more than latents and text.
    foreign = [
        n for n in names if n.startswith(("conditioner.", "text_encoders.", "control_model."))
    ]
    foreign += [n for n in names if n.startswith("model.diffusion_model.label_emb.")]
    require(
        not foreign,
        f"{path} needs more than text (it has {foreign[0] if foreign else ''}), as unCLIP and SDXL "
        "do; one of SDXL is taken as a diffusers folder: "
        f"{XL_CONVERSION.format(name=path)}",
    )
    shape = header[FIRST_CONV].get("shape")
    channels = shape[1] if isinstance(shape, list) and len(shape) == 4 else shape
    need = OTHER_INPUTS.get(channels) if type(channels) is int else None
    require(
        need is None, f"{path}: its unet takes {channels} channels, so it needs {need}; {REMEDY}"
    )
    # The other parts are in the file as well.
    for prefix, part in (
        ("first_stage_model.", "autoencoder"),
        ("cond_stage_model.", "text encoder"),
    ):
        require(
            any(name.startswith(prefix) for name in names),
            f"{path} lacks its {part} ({prefix}*); give the whole checkpoint",
        )


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def find_lora(name: str) -> Path:
    """The adapter file that `--lora` names: the file itself, or the one in a folder.

    Raises:
        InputError: There is none, or it is no LoRA in diffusers' or kohya's format.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        named = [file for file in files if file.name == LORA_FILE]
        require(
            bool(named) or len(files) == 1,
            f"--lora {name} holds no {LORA_FILE}; give what a LoRA training wrote",
        )
        path = (named or files)[0]
    require(
        path.is_file(),
        f"--lora {name} does not exist; give a folder with {LORA_FILE}, or a .safetensors file",
    )
    require(
        path.suffix == ".safetensors",
        f"--lora {path} is no safetensors file; save it with safe_serialization",
    )
    names = safetensors_header(path)
    require(
        num_lora_layers(names) > 0 and not any(n.startswith("base_model.") for n in names),
        f"--lora {path} holds no LoRA in diffusers' format; give one that diffusers' "
        "save_lora_weights, or a fine-tuning with --lora_rank, wrote",
    )
    _check_lora_tensors(names.keys(), path)
    return path
