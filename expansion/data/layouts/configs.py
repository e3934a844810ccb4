"""The YAML files of `configs/datasets/`: their fields, and the readers that they name.

A new layout of files on disk needs a dataclass of its YAML fields and a function
`(layout, root, name) -> Reader`, which raises InputError for missing or unclear files; a line in
`READERS` makes them known. `expansion.data.readers.folders.Reader` says what a reader offers. The
shortest way is to turn the files into rows and return `expansion.data.readers.rows.RowsReader`.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from expansion.common.config import CONFIG_DIR, YAML_ERRORS, Source, compose, load_yaml, option
from expansion.common.errors import InputError, require, shown
from expansion.data.layouts.embedded import EmbeddedLayout, read_embedded
from expansion.data.readers.arrays import ArraysLayout, read_arrays
from expansion.data.readers.folders import FolderLayout, FolderReader
from expansion.data.readers.lists import ListLayout, read_lists
from expansion.data.readers.mat import MatLayout, read_mat

# Kind of reader -> the dataclass of its YAML fields, and the function or class that makes it.
READERS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "folder": (FolderLayout, FolderReader),
    "list": (ListLayout, read_lists),
    "mat": (MatLayout, read_mat),
    "arrays": (ArraysLayout, read_arrays),
    "embedded": (EmbeddedLayout, read_embedded),
}
# Types that YAML gives to an unquoted 010, 1.0, no or 2024-01-01 where a name is meant.
NO_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp")}
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Fields of `configs/datasets/<name>.yaml`, to which the fields of its reader are added."""

    reader: str = option("folder", "layout on disk", choices=READERS)
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

    @property
    def may_be_mirrored(self) -> bool:
        """Whether training may mirror images, as classifiers do unless `classifier` says no."""
        return (self.classifier or {}).get("horizontal_flip") is not False


def is_known(name: str) -> bool:
    """Whether `configs/datasets/` has a file for this name; a path is never known."""
    return os.sep not in name and os.path.isfile(yaml_path(name))


def yaml_path(name: str) -> Path:
    """The YAML file of a dataset."""
    return CONFIG_DIR / "datasets" / f"{name}.yaml"


def known_names() -> list[str]:
    """Names of the datasets that have a YAML file, sorted."""
    return sorted(path.stem for path in (CONFIG_DIR / "datasets").glob("*.yaml"))


def read_config(name: str) -> tuple[DatasetConfig, Any]:
    """Read a dataset's YAML file.

    Returns:
        Its settings, and the fields of its reader, an instance of the reader's dataclass.

    Raises:
        InputError: The file has faults.
    """
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
    """Field -> "scalar" or "sequence", for the fields that hold one text or a list of texts."""
    hints = typing.get_type_hints(config_class)
    kinds = {str: "scalar", str | None: "scalar", tuple[str, ...]: "sequence"}
    return {name: kinds[hint] for name, hint in hints.items() if hint in kinds}


def _as_written(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    """Read some fields of a YAML file with numbers, dates and booleans as the text that is written.

    `no: healthy` and `001: heron` are classes called "no" and "001", not false and 1.

    Args:
        path: The file.
        texts: Field -> "scalar", "sequence" or "mapping", the kind of value it may hold.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            root = loader.get_single_node()
            pairs = root.value if isinstance(root, yaml.MappingNode) else []
            values = {}
            for key, value in pairs:
                if isinstance(key, yaml.ScalarNode) and texts.get(key.value) == value.id:
                    _retag(path, key.value, value)
                    values[key.value] = loader.construct_object(value, deep=True)
            return values
        finally:
            loader.dispose()
    except InputError:
        raise
    except YAML_ERRORS as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _retag(path: Path, field: str, value: yaml.Node) -> None:
    """Turn unquoted numbers, dates and booleans into texts; also null, where it is a key."""
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
