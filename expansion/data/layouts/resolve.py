"""Finds settings, layout and folder of a dataset by the name or folder that a user gives."""

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
    """How and where a dataset is read.

    Attributes:
        config: Its settings.
        fields: The YAML fields of its reader, an instance of the reader's dataclass.
        root: Its folder.
        title: What folders of results call it.
        remarks: Lines on choices between several possibilities.
    """

    config: DatasetConfig
    fields: Any
    root: Path
    title: str
    remarks: tuple[str, ...] = ()


def find_layout(name: str, data_dir: Path) -> Layout:
    """Find the layout of a dataset; reads no images.

    Args:
        name: A name from `configs/datasets/`, a folder below `data_dir`, or a path to a folder.
        data_dir: Folder of the named datasets.

    Raises:
        InputError: There is no such dataset, or its folder may be read in several ways.
    """
    name = home_expanded(name)
    if is_known(name):
        config, fields = read_config(name)
        root = data_dir / (config.folder or name)
        return Layout(config, fields, root, name, _other_place(name, Path(name), root))
    places = [place for place in (Path(name), data_dir / name) if os.path.isdir(place)]
    if places:
        layout = _folder_layout(places[0].resolve())
        remarks = _other_place(name, places[-1], places[0])
        return replace(layout, remarks=remarks + layout.remarks)
    if os.sep in name:
        raise InputError(
            f"dataset folder {name} does not exist; expected train/<class>/*.jpg in it"
        )
    error = unknown_name("dataset", name, known_names())
    raise InputError(f"{error}; or give a folder that holds train/<class>/*.jpg")


def _folder_layout(root: Path) -> Layout:
    """The layout of a folder: metadata with labels, else a known dataset, else class folders."""
    refuse_a_part(root)
    # Metadata files with labels.
    metadata = find_metadata(root)
    if metadata.layout is not None:
        config = DatasetConfig(reader="list")
        return Layout(config, metadata.layout, root, root.name, metadata.remarks)
    # The files of a known dataset, in this folder or, by mistake, above or below it.
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
        place, candidates = around
        names = shown(known.name for known in candidates)
        require(
            place == root.parent and not candidates[0].has_split,
            f"{root} is no dataset of its own, {place} is {names}: give {place}",
        )
        remarks += (f"{root.name}/ is a part of {names}, which is split otherwise: give {place}",)
    return Layout(DatasetConfig(), FolderLayout(), root, root.name, remarks)


def _other_place(name: str, other: Path, used: Path) -> tuple[str, ...]:
    """A remark if `other` is another folder of the same name as the one that is used."""
    if not os.path.isdir(other) or (os.path.isdir(used) and os.path.samefile(other, used)):
        return ()
    path = other if other.is_absolute() or os.sep in str(other) else f".{os.sep}{other}"
    return (f"{name} is read from {used}; the folder {path} is not used",)
