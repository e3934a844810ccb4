"""CLIP models as files: whether a local folder is complete. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from expansion.common.errors import InputError, require
from expansion.common.texts import read_json

LONGEST_REASON = 200  # characters of transformers' messages
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SETTINGS = ("config.json", "preprocessor_config.json")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either is enough
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def cannot_load(name_or_path: str, reason: str, option: str = "--weights") -> InputError:
    """What to raise where a CLIP model cannot be used.

    Args:
        name_or_path: Hub id or local folder.
        reason: Why.
        option: Gives another one.
    """
    return InputError(
        f"cannot load the CLIP model {name_or_path}: {reason[:LONGEST_REASON]}; download it once "
        "while connected (0.6 GB, as in: hf download openai/clip-vit-base-patch32), or give a "
        f"local folder by {option}"
    )


def check_clip(name_or_path: str, option: str) -> None:
    """Raise InputError if a path is no folder with a whole CLIP; a hub id is not looked at.

    Args:
        name_or_path: Hub id or local folder.
        option: Gives another one.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(name_or_path) or name_or_path.startswith("."):
            raise cannot_load(name_or_path, "there is no such folder", option)
        return
    for name in SETTINGS:
        if not (folder / name).is_file():
            raise cannot_load(name_or_path, f"it lacks {name}", option)
    if not any(all((folder / name).is_file() for name in files) for files in TOKENIZERS):
        raise cannot_load(name_or_path, "it lacks tokenizer.json", option)
    clip_files(name_or_path, option)


def clip_files(name_or_path: str, option: str) -> list[Path]:
    """The files that a local CLIP is read from: weights, one file or several, then settings.

    Args:
        name_or_path: Hub id, which has none, or local folder.
        option: Gives another one.

    Raises:
        InputError: A file is missing.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return []
    settings = sorted({*SETTINGS, *(name for names in TOKENIZERS for name in names)})
    beside = [folder / name for name in settings if (folder / name).is_file()]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS, *beside]
    if not (folder / INDEX).is_file():
        raise cannot_load(name_or_path, f"it lacks {WEIGHTS}", option)
    shards = read_json(folder / INDEX, dict).get("weight_map")
    require(isinstance(shards, dict) and bool(shards), f"{folder / INDEX} names no files")
    paths = [folder / Path(name).name for name in sorted(set(map(str, shards.values())))]
    for path in paths:
        if not path.is_file():
            raise cannot_load(name_or_path, f"it lacks {path.name}", option)
    return [folder / INDEX, *paths, *beside]
