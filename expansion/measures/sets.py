"""Which images are measured, and against which: sets, training and test images. Loads no torch."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expansion.common.config import option
from expansion.common.errors import require, shown
from expansion.common.seeding import stable_seed
from expansion.data.datasets import (
    DEFAULT_DATASET,
    ImageDataset,
    dataset_title,
    load_dataset,
)
from expansion.images.content import readable_records
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import Asked, read_expansion
from expansion.store.manifest import read_manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Settings of the command."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    exp: tuple[str, ...] = option(
        (), "sets to measure: names, as in <data_dir>/<dataset>_expansion/<exp>, or folders"
    )
    test_fraction: float | None = option(
        None,
        "share of each class for testing, of a dataset without a test split; default: as the sets "
        "say",
    )
    features: tuple[str, ...] = option(
        ("run",),
        "network that gives the features: run, the classifier of a finished run on real images "
        "(run:DIR; default: the first one of the dataset in --checkpoint_dir); inception:FILE, the "
        "weights of FID; clip or dinov2, each perhaps with :ID, a hub id or local folder",
    )
    checkpoint_dir: str = option("checkpoint", "where finished runs are looked for")
    reference: str = option(
        "test", "real images that the sets are compared with", choices=("test", "train")
    )
    cross_fit: int = option(
        0,
        "judge the labels by this many classifiers, each trained without a part of the real images "
        "and asked about the images made from that part; 0: by the run on all of them, which "
        "saw the sources",
    )
    cross_fit_steps: int = option(300, "optimiser steps of each classifier of --cross_fit")
    paper_images: int | None = option(
        None,
        "show the papers' columns, Frechet distance (FID with inception) and MMD to the training "
        "images, from so many images of each set; they fall with that number, so it is in the "
        "column's name",
    )
    seed: int = option(0, "of every random choice: halves, samples, permutations")
    batch_size: int = option(64, "images that the network sees at a time", decides=False)
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one", decides=False)
    cache_dir: str | None = option(
        None,
        "where features are kept between commands; default: dataset-expansion/measures in "
        "XDG_CACHE_HOME, else in ~/.cache",
        decides=False,
    )
    on_incomplete: str = option(
        "fail", "what a set that lacks images does: fail, or use what is there",
        choices=("fail", "use"),
    )  # fmt: skip
    on_error: str = option("fail", "what an unreadable image does", choices=("fail", "skip"))
    dry_run: bool = option(False, "print what would be measured and embedded, and stop")

    def __post_init__(self):
        require(bool(self.exp), "which sets? give --exp NAME ..., as in <dataset>_expansion/NAME")
        require(len(set(self.exp)) == len(self.exp), "--exp names a set twice; give each once")
        for name, least in (
            ("batch_size", 1),
            ("cross_fit_steps", 1),
            ("paper_images", 2),
            ("seed", 0),
        ):
            value = getattr(self, name)
            require(value is None or value >= least, f"{name} {value}: give {least} or more")
        require(self.cross_fit != 1 and self.cross_fit >= 0, "cross_fit: give 0, or 2 or more")
        require(len(self.features) <= 2, "--features: give one network, such as run:DIR")

    @property
    def network(self) -> tuple[str, str | None]:
        """Kind of the network, and where it is, if that was said."""
        kind, *place = ":".join(self.features).split(":", 1)
        return kind, place[0] if place else None


@dataclass(frozen=True)
class ImageSet:
    """Images to be measured, by file name.

    Attributes:
        folder: Of an expanded set; None of real images that serve for comparison.
    """

    name: str
    images: Sequence[ImageRecord]
    folder: Path | None = None

    @property
    def labels(self) -> np.ndarray:
        return np.array([record.label for record in self.images], dtype=np.int64)


@dataclass(frozen=True)
class Measured:
    """All images of a table: the sets, and the dataset's.

    Attributes:
        train: Real images that one of the sets was made from, or chosen from (`expand_fraction`).
        test: Real images that nothing was made from.
    """

    dataset: ImageDataset
    sets: Sequence[ImageSet]
    train: Sequence[ImageRecord]
    test: Sequence[ImageRecord]

    def source_index(self, images: Sequence[ImageRecord]) -> np.ndarray:
        """Which of `train` each image was made from, or is; -1: none."""
        places = {record.file_name: i for i, record in enumerate(self.train)}
        return np.array([places.get(r.source or r.file_name, -1) for r in images], dtype=np.int64)


def read_images(config: MeasureConfig) -> Measured:
    """Find and check all images; every one is hashed, and decoded once to find broken ones.

    Raises:
        InputError: A set is missing, incomplete or of another dataset, or a class of it, or of the
            real images for testing, has fewer than two images.
    """
    title = dataset_title(config.dataset, config.data_dir)
    folders = [_folder(config, title, exp) for exp in config.exp]
    asked = [Asked.read(folder) for folder in folders]
    dataset = load_dataset(config.dataset, config.data_dir, _test_fraction(config, asked))
    sources = {record.file_name: record for record in dataset.records("train")}
    # The contents are needed to see that the real images are those that the sets were made from.
    readable, _ = readable_records(list(sources.values()), config.on_error)
    sources = {record.file_name: record for record in readable}
    test, _ = readable_records(dataset.records("test"), config.on_error)
    sets, used = [], set()
    for folder, exp, each in zip(folders, config.exp, asked, strict=True):
        _require_known_sources(folder, sources, dataset)
        images = read_expansion(folder, sources, config.on_incomplete)
        images, _ = readable_records(images, config.on_error)
        images = sorted(images, key=lambda record: record.file_name)
        require(bool(images), f"{folder} holds no image that can be read")
        _require_two_of_each(images, dataset, f"the set {folder}")
        # Of a set by another tool the real images are not known: any may have served.
        known = all(record.source for record in images)
        used |= {record.source for record in images} if known else set(sources)
        used |= each.trained_on & sources.keys() if each else set()
        sets.append(ImageSet(exp, images, folder))
    _require_two_of_each(test, dataset, f"the test images of {dataset.root}")
    train = [record for record in readable if record.file_name in used]
    return Measured(dataset, sets, train, test)


def zero_lines(measured: Measured, reference: Sequence[ImageRecord], seed: int) -> list[ImageSet]:
    """Real images measured as if they were generated, whose figures are known beforehand.

    Half of the reference against its other half, the training images as they are, and the half
    again with every class called as the next one.
    """
    half, _ = halves(reference, seed)
    lines = [ImageSet(HALF, half), ImageSet(COPIED, measured.train)]
    names = measured.dataset.class_names
    if len(names) > 1:
        lines.append(ImageSet(OTHER, [_called_otherwise(record, names) for record in half]))
    return lines


HALF, COPIED, OTHER = "(half of the real)", "(training images)", "(another class)"


def halves(
    records: Sequence[ImageRecord], seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Two halves of every class, by a hash of seed and name; of an odd one the first is smaller."""
    order = sorted(records, key=lambda r: stable_seed("half", seed, r.file_name))
    sizes = Counter(record.label for record in records)
    seen: Counter[int] = Counter()
    first: list[ImageRecord] = []
    second: list[ImageRecord] = []
    for record in order:
        seen[record.label] += 1
        (first if seen[record.label] <= sizes[record.label] // 2 else second).append(record)
    return sorted(first, key=lambda r: r.file_name), sorted(second, key=lambda r: r.file_name)


def _called_otherwise(record: ImageRecord, names: Sequence[str]) -> ImageRecord:
    label = (record.label + 1) % len(names)
    return dataclasses.replace(record, label=label, class_name=names[label])


def _folder(config: MeasureConfig, title: str, exp: str) -> Path:
    named = Path(config.data_dir, f"{title}_expansion", exp)
    folder = named if named.is_dir() or not Path(exp).is_dir() else Path(exp)
    require(
        folder.is_dir(),
        f"expanded set {named} does not exist; make it with expand.py, or give its folder to --exp",
    )
    return folder


def _require_known_sources(
    folder: Path, sources: dict[str, ImageRecord], dataset: ImageDataset
) -> None:
    rows = read_manifest(folder)
    known = [row for row in rows if row["source"] in sources]
    names = shown(sorted({row["source"] for row in rows}), 2)
    require(
        bool(known) or not rows,
        f"{folder} was made from another dataset than {dataset.name}: none of its real images "
        f"({names}) is a training image here; measure it by itself, with its own dataset as -d",
    )


def _test_fraction(config: MeasureConfig, asked: Sequence[Asked | None]) -> float | None:
    """As the option says, else as the first set does that says it."""
    if config.test_fraction is not None:
        return config.test_fraction
    said = [each.facts.get("test_fraction") for each in asked if each]
    return next((share for share in said if type(share) is float and 0 < share < 1), None)


def _require_two_of_each(records: Sequence[ImageRecord], dataset: ImageDataset, title: str) -> None:
    counts = Counter(record.label for record in records)
    few = [name for label, name in enumerate(dataset.class_names) if counts[label] < 2]
    require(
        not few,
        f"{title}: fewer than two images of class {shown(few)}, so that no distance is defined",
    )
