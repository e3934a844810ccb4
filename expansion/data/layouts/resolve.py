"""From the name or folder that a user gives to the settings, the layout and the folder to read."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expansion.common.config import home_expanded
from expansion.common.errors import InputError, require, shown, unknown_name
from expansion.data.layouts.configs import DatasetConfig, is_known, known_names, read_config
from expansion.data.layouts.known import known_around, recognise
from expansion.data.layouts.metadata_files import find_metadata
from expansion.data.readers.folders import FolderLayout
from expansion.data.readers.split_folders import folders_by_split, refuse_a_part


@dataclass(frozen=True)
class Layout:
    """How a dataset is read.

    Attributes:
        fields: The YAML fields of its reader.
        title: What folders of results call it.
        remarks: What was chosen, beside other possibilities.
    """

    config: DatasetConfig
    fields: Any
    root: Path
    title: str
    remarks: tuple[str, ...] = ()


def find_layout(name: str, data_dir: Path) -> Layout:
    """The layout of a dataset by its name or folder; reads no images.

    Raises:
        InputError: No such dataset, or a folder that may be read in several ways.
    """
    name = home_expanded(name)
    if is_known(name):
        config, fields = read_config(name)
        root = data_dir / (config.folder or name)
        return Layout(config, fields, root, name, _other_place(name, Path(name), root))
    places = [place for place in (Path(name), data_dir / name) if os.path.isdir(place)]
    if places:
        found = _folder_layout(places[0].resolve())
        remarks = _other_place(name, places[-1], places[0])
        return replace(found, remarks=remarks + found.remarks)
    if os.sep in name:
        raise InputError(
            f"dataset folder {name} does not exist; expected train/<class>/*.jpg in it"
        )
    error = unknown_name("dataset", name, known_names())
    raise InputError(f"{error}; or give a folder that holds train/<class>/*.jpg")


def _folder_layout(root: Path) -> Layout:
    """Metadata with labels, else a known archive, else class folders."""
    refuse_a_part(root)
    metadata = find_metadata(root)
    if metadata.layout is not None:
        config = DatasetConfig(reader="list")
        return Layout(config, metadata.layout, root, root.name, metadata.remarks)
    known = recognise(root)
    if known is not None:
        use = (
            "its official split is used" if known.has_split else "it is split as its YAML file says"
        )
        remark = f"recognised as {known.name}: {use}"
        return Layout(known.config, known.layout, root, root.name, (remark,))
    remarks = metadata.remarks
    around = None if folders_by_split(root).get("train") else known_around(root)
    if around is not None:
        place, found = around
        names = shown(known.name for known in found)
        require(
            place == root.parent and not found[0].has_split,
            f"{root} is no dataset of its own, {place} is {names}: give {place}",
        )
        remarks += (f"{root.name}/ is a part of {names}, which is split otherwise: give {place}",)
    return Layout(DatasetConfig(), FolderLayout(), root, root.name, remarks)


def _other_place(name: str, other: Path, used: Path) -> tuple[str, ...]:
    """A remark where another folder bears the name, too."""
    if not os.path.isdir(other) or (os.path.isdir(used) and os.path.samefile(other, used)):
        return ()
    path = other if other.is_absolute() or os.sep in str(other) else f".{os.sep}{other}"
    return (f"{name} is read from {used}; the folder {path} is not used",)
