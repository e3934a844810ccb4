"""Labelled image sets, which users give by a name or a folder.

Each is read by the reader of its layout. It has a list of `ImageRecord` for each split; labels are
positions in the list of classes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from expansion.common.config import Layers, home_expanded
from expansion.common.errors import InputError, brief, one_line, require, shown
from expansion.common.files import write_atomic
from expansion.common.texts import NameIndex, keyed_by, read_json, stripped
from expansion.data.layouts.configs import READERS, DatasetConfig
from expansion.data.layouts.resolve import find_layout
from expansion.data.layouts.unused_files import unused_remarks
from expansion.data.readers.folders import Reader
from expansion.data.readers.split_folders import TESTING, folders_by_split
from expansion.data.splits import SplitOptions, few_shot
from expansion.data.stored_splits import listed_names
from expansion.images.file_trees import image_files
from expansion.images.pixels import Reading, check_reading
from expansion.images.records import ImageRecord, require_text

logger = logging.getLogger(__name__)

DEFAULT_DATASET = "mnist-few-shot"
DEFAULT_READING = Reading()


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A dataset on disk.

    Attributes:
        name: What folders of results call it.
        root: Its folder.
        class_names: Names of the classes as in its files, in label order.
        prompt_names: Names of the classes in prompts, in label order.
        config: Its settings, from its YAML file or the defaults.
        reader: Lists its images.
        chosen: Lines on how its layout was recognised, where there was a choice.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    prompt_names: tuple[str, ...]
    config: DatasetConfig
    reader: Reader
    chosen: tuple[str, ...] = ()
    _splits: dict[str, list[ImageRecord]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def records(self, split: str) -> list[ImageRecord]:
        """The images of a split, sorted by class and file name.

        Args:
            split: "train" or "test"; some datasets also have "unlabeled" or "prior".

        Raises:
            InputError: The split is missing or empty, or its lists name files that do not exist.
        """
        if split not in self._splits:
            self._splits[split] = self._read(split)
        return list(self._splits[split])

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Lines on choices that were made, and on files in the folder that are not used."""
        remarks = [*self.chosen, *self.reader.remarks]
        known = [*self.reader.known_folders]
        try:
            used = [record.path for record in self.records("train")]
        except InputError:
            return tuple(remarks)  # whatever needs the images gets the error
        try:
            used += [record.path for record in self.records("test")]
        except InputError:
            folders = folders_by_split(self.root)
            known += [path.name for split in TESTING for path in folders.get(split, ())]
        return tuple(remarks + unused_remarks(self.root, used, known))

    def _read(self, split: str) -> list[ImageRecord]:
        records = self.reader.records(split)
        require(bool(records), f"{self.root}: its {split} split is empty; add images")
        require_text((record.file_name for record in records), str(self.root))
        if not self.config.crop_bottom and self.reading == Reading():
            return records
        rows, reading = self.config.crop_bottom, self.reading
        return [dataclasses.replace(r, crop_bottom=rows, reading=reading) for r in records]

    @property
    def reading(self) -> Reading:
        """The settings of how its images are read."""
        return Reading(self.config.background, self.config.value_range)


def load_dataset(
    name: str,
    data_dir: str | Path = "data",
    test_fraction: float | None = None,
    log_remarks: bool = True,
) -> ImageDataset:
    """Find a dataset by name or by folder and read its class list.

    Args:
        name: A name from `configs/datasets/`, a folder below `data_dir`, or a path to a folder.
        data_dir: Folder of the named datasets.
        test_fraction: Share of each class for testing, for a dataset without a test split.
        log_remarks: Log its remarks; of several processes only one does.

    Raises:
        InputError: There is no such dataset, or its folders are missing or empty.
    """
    # Find its layout; `test_fraction` makes sense only where there is no test split.
    layout = find_layout(name, Path(data_dir))
    fields = layout.fields
    can_split = test_fraction is not None and isinstance(fields, SplitOptions)
    if can_split:
        fields = dataclasses.replace(fields, test_fraction=test_fraction, train_per_class=None)
    reader = READERS[layout.config.reader][1](fields, layout.root, layout.title)
    recognised = "".join(f" ({remark})" for remark in layout.remarks)
    require(
        test_fraction is None or (can_split and reader.splits_by_seed),
        f"--test_fraction {test_fraction}: dataset {name} has a test split{recognised}; leave the "
        "option out",
    )
    # Put it together from settings and reader.
    config = layout.config
    check_reading(Reading(config.background, config.value_range), f"dataset {name}")
    dataset = ImageDataset(
        layout.title,
        layout.root,
        reader.class_names,
        _prompt_names(name, layout.config, reader),
        layout.config,
        reader,
        layout.remarks,
    )
    if log_remarks and os.environ.get("RANK", "0") == "0":
        for remark in dataset.remarks:
            logger.info("%s: %s", dataset.name, one_line(remark))
    return dataset


def classes_without_images(class_names: Sequence[str], records: Sequence[ImageRecord]) -> list[str]:
    """Names of the classes of which `records` hold no image."""
    present = {record.label for record in records}
    return [name for label, name in enumerate(class_names) if label not in present]


def check_classes(dataset: ImageDataset, records: Sequence[ImageRecord], least: int = 1) -> None:
    """Raise InputError where a class has no training image, or there are too few classes.

    Args:
        dataset: Whose classes.
        records: Training images that can be read.
        least: Number of classes that are needed; a classifier needs two.
    """
    absent = classes_without_images(dataset.class_names, records)
    require(not absent, f"{dataset.root}: no readable training image of {shown(absent)}")
    require(
        len(dataset.class_names) >= least,
        f"{dataset.root} has only the class {dataset.class_names[0]!r}; a classifier needs two "
        "or more, each in a folder of its own",
    )


def dataset_config(name: str, data_dir: str | Path = "data") -> DatasetConfig:
    """The settings of a dataset, without reading its images.

    Args:
        name: As in `load_dataset`.
        data_dir: Folder of the named datasets.

    Raises:
        InputError: There is no such dataset.
    """
    return find_layout(name, Path(data_dir)).config


def dataset_of(settings: Layers) -> tuple[str, DatasetConfig]:
    """The dataset that the settings of a command name, and what its file says."""
    given = settings.peek("dataset", DEFAULT_DATASET), settings.peek("data_dir", "data")
    name, data_dir = (home_expanded(v) if isinstance(v, str) else brief(v) for v in given)
    return name, dataset_config(name, data_dir)


def dataset_title(name: str, data_dir: str | Path = "data") -> str:
    """What folders of results call a dataset; arguments and errors as in `dataset_config`."""
    return find_layout(name, Path(data_dir)).title


def unlabeled_records(folder: str | Path, reading: Reading = DEFAULT_READING) -> list[ImageRecord]:
    """All images below a folder, sorted; their label 0 means nothing.

    Args:
        folder: Holds images at any depth.
        reading: How to read them, usually like the labelled images that they go with.

    Raises:
        InputError: There is no such folder, or no image in it.
    """
    root = Path(folder)
    files = image_files(root)
    require(bool(files), f"unlabeled_dir {folder}: no images there; give a folder that holds some")
    names = [path.relative_to(root).as_posix() for path in files]
    require_text(names, f"unlabeled_dir {folder}")
    return [
        ImageRecord(path, name, 0, "", reading=reading)
        for path, name in zip(files, names, strict=True)
    ]


def choose_subset(
    records: Sequence[ImageRecord], shots: int | None, subset_seed: int, path: str | None
) -> list[ImageRecord]:
    """Choose training images: those that a list file names, else by `few_shot`.

    Args:
        records: All training images.
        shots: Number of images per class; None keeps all.
        subset_seed: Decides which images `few_shot` keeps.
        path: JSON file as `write_subset` makes it, or a bare JSON list of file names. If it does
            not exist yet, `few_shot` chooses.

    Raises:
        InputError: The file names other images, or was made with other settings.
    """
    if path is None:
        return few_shot(records, shots, subset_seed)
    if not Path(path).is_file():
        require(
            shots is not None,
            f"--subset_file {path} does not exist; give --shots as well, and it is made",
        )
        return few_shot(records, shots, subset_seed)
    # The list must have been made with the same settings, if it tells them.
    stored = read_json(Path(path), (dict, list))
    if isinstance(stored, list):
        stored = {"files": stored}
    for key, value in (("shots", shots), ("subset_seed", subset_seed)):
        require(
            shots is None or stored.get(key, value) == value,
            f"--subset_file {path} was made with {key} {stored.get(key)}, not {value}; "
            "give another file",
        )
    # It must name training images of this dataset.
    names = listed_names(Path(path), stored, "files")
    index = NameIndex(record.file_name for record in records)
    names_here = {name: index.find(name) for name in names}
    absent = [name for name, there in names_here.items() if there is None]
    require(
        not absent,
        f"--subset_file {path} names {len(absent)} files that are no training images: "
        f"{shown(absent)}; give the list of this dataset",
    )
    require(bool(names), f"--subset_file {path} names no files")
    wanted = set(names_here.values())
    return [record for record in records if record.file_name in wanted]


def write_subset(
    records: Sequence[ImageRecord], shots: int | None, subset_seed: int, path: str | None
) -> None:
    """Store the chosen images as a list file, unless it exists; arguments as in `choose_subset`."""
    if path is None or Path(path).exists():
        return
    content = {
        "shots": shots,
        "subset_seed": subset_seed,
        "files": [record.file_name for record in records],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(path), json.dumps(content, indent=0) + "\n")


def _prompt_names(name: str, config: DatasetConfig, reader: Reader) -> tuple[str, ...]:
    """Names of the classes in prompts: from the YAML file, else the dataset's files, else as is."""
    # What the files say, and what the YAML file says instead.
    spoken: dict[Any, Any] = {}
    for given in (reader.spoken_names, config.class_names or {}):
        spoken |= keyed_by(reader.class_names, given, f"dataset {name}: class_names")
    stray = sorted(map(brief, set(spoken) - set(reader.class_names)))
    unnamed = [c for c in reader.class_names if c not in spoken]
    # A smaller copy of a dataset may lack classes that have names; but a name without a class
    # beside a class without a name is a mistake.
    require(
        not (stray and unnamed),
        f"dataset {name}: class_names has {stray[0]}, no such class" if stray else "",
    )
    for text in spoken.values():
        number = type(text) in (int, float) and abs(text) < 1e15
        require(
            isinstance(text, str) or number,
            f"dataset {name}: class_names: expected text, got {brief(text)}",
        )
    spoken = {c: stripped(str(text)) for c, text in spoken.items()}
    blank = sorted(str(c) for c, text in spoken.items() if not text)
    require(not blank, f"dataset {name}: class_names: the name of {shown(blank)} is empty")
    # The others are called as their classes are, in readable form.
    plain = {c: c.replace("_", " ") for c in unnamed}
    if config.lower_case:
        plain = {c: text.lower() for c, text in plain.items()}
    names = tuple({**plain, **spoken}[c] for c in reader.class_names)
    require_text([*reader.class_names, *names], f"dataset {name}: class names")
    return names
