"""The YAML files of `configs/datasets/`: what they may hold, and the readers that they name."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

import yaml

from expansion.common.config import CONFIG_DIR, YAML_ERRORS, Source, compose, load_yaml, option
from expansion.common.errors import InputError, require, shown
from expansion.data.layouts.digits import read_digits
from expansion.data.readers.arrays import ArraysLayout, read_arrays
from expansion.data.readers.folders import FolderLayout, FolderReader
from expansion.data.readers.lists import ListLayout, read_lists
from expansion.data.readers.mat import MatLayout, read_mat

# Kind of reader -> the YAML fields of its layout, and what makes the reader.
READERS = {
    "folder": (FolderLayout, FolderReader),
    "list": (ListLayout, read_lists),
    "mat": (MatLayout, read_mat),
    "arrays": (ArraysLayout, read_arrays),
    "digits": (FolderLayout, read_digits),
}
# What YAML makes of an unquoted 010, 1.0, no or 2024-01-01 where a name is meant.
NO_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp")}
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Schema of `configs/datasets/<name>.yaml`, beside the fields of its reader's layout."""

    reader: str = option("folder", "layout on disk", choices=tuple(READERS))
    folder: str | None = option(None, "folder below the data folder; default: the dataset's name")
    prompt_template: str = option("a photo of a {}.", "prompt; {} becomes the class name")
    class_names: dict = option(None, "class -> name in prompts, where they differ")
    lower_case: bool = option(False, "write the other class names in small letters in prompts")
    crop_bottom: int = option(0, "rows of pixels cut off below each image: a credit line")
    background: str = option("white", "colour behind transparent pixels: a name or '#rrggbb'")
    value_range: tuple[float, ...] = option(
        (), "the two grey values of 16-bit, 32-bit and float images that become black and white"
    )
    expand: dict = option(None, "overrides of expand.py's options, for every method")
    methods: dict = option(None, "method -> overrides of expand.py's options")
    classifier: dict = option(None, "overrides of the classifier recipe")


def is_known(name: str) -> bool:
    """Whether the name has a file of its own; no path, nor one too long for a file, has."""
    return os.sep not in name and os.path.isfile(yaml_path(name))


def yaml_path(name: str) -> Path:
    """Where the file of a dataset lies."""
    return CONFIG_DIR / "datasets" / f"{name}.yaml"


def known_names() -> list[str]:
    """Datasets with a file of their own."""
    return sorted(path.stem for path in (CONFIG_DIR / "datasets").glob("*.yaml"))


def read_config(name: str) -> tuple[DatasetConfig, Any]:
    """(settings, layout) of a dataset's file. Raises InputError for what is wrong in it."""
    source = load_yaml(yaml_path(name))
    kind = source.values.get("reader", DatasetConfig.reader)
    if kind not in list(READERS):  # YAML may give a list, which a mapping cannot look up
        compose([DatasetConfig], [Source({"reader": kind}, source.name)])
    layout = READERS[kind][0]
    texts = {**_text_fields(DatasetConfig), **_text_fields(layout), "class_names": "mapping"}
    names = _as_written(yaml_path(name), texts)
    return tuple(
        compose([DatasetConfig, layout], [Source({**source.values, **names}, source.name)])
    )


def _text_fields(config_class: type) -> dict[str, str]:
    """Fields that hold one text or a list of texts -> which."""
    hints = typing.get_type_hints(config_class)
    kinds = {str: "scalar", str | None: "scalar", tuple[str, ...]: "sequence"}
    return {name: kinds[hint] for name, hint in hints.items() if hint in kinds}


def _as_written(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    """The values of these fields with numbers, dates and booleans as the text that stands there.

    `no: healthy` and `001: heron` are classes called "no" and "001", not false and 1.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            root = loader.get_single_node()
            pairs = root.value if isinstance(root, yaml.MappingNode) else []
            found = {}
            for key, value in pairs:
                if isinstance(key, yaml.ScalarNode) and texts.get(key.value) == value.id:
                    _retag(path, key.value, value)
                    found[key.value] = loader.construct_object(value, deep=True)
            return found
        finally:
            loader.dispose()
    except InputError:
        raise
    except YAML_ERRORS as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _retag(path: Path, field: str, value: yaml.Node) -> None:
    """Make unquoted numbers and the like texts; of keys, also null, as no other can be meant."""
    if value.id != "mapping":
        keys, nodes = [], value.value if value.id == "sequence" else [value]
    else:
        keys, nodes = [key for key, _ in value.value], [node for _, node in value.value]
        names = [key.value for key in keys if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"{path}: {field} has {shown(map(repr, twice))} twice; remove one")
    for node in (*keys, *nodes):
        if node.tag in NO_TEXT or (node.tag == NULL and node in keys):
            node.tag = TEXT
