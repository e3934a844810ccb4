"""The keys of the files in configs/papers but for those of a scale, which are in `scales`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from expansion.common.config import option
from expansion.common.errors import require
from expansion.study.settings import check_seeds

REAL = "real"  # the set of arms that train on real images alone
MEASURES = {
    "accuracy": "top-1 accuracy on the test images, percent",
    "fid": "Frechet distance to the training images (FID with Inception's features)",
    "mmd": "MMD to the training images: Gaussian kernel on features of unit length, not squared",
    "seconds": "seconds per image, by python -m expansion.benchmark",
}
LOWER_IS_BETTER = ("fid", "mmd", "seconds")


def check_counts(config: Any, *names: str) -> None:
    """Raise InputError for a number of these names that is given and below 1."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} {value}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """What one cell is; rows and columns say parts of it."""

    dataset: str | None = option(None, "name in the paper's `datasets`")
    set: str = option(REAL, "name in the paper's `sets`, or real: real images alone")
    images: int | None = option(None, "images made of each real one; default: the dataset's")
    options: dict | None = option(None, "options of expand.py beside those of the set")
    train: dict | None = option(None, "options of the training commands")
    guide: dict | None = option(None, "options of the training of the guide")
    measure: str = option("accuracy", "what the cell shows", choices=MEASURES)
    columns: tuple[str, ...] = option((), "of a row: the columns that it has; default: all")
    best_of: dict | None = option(
        None, "one option of expand.py and its values: the cell shows the best of these"
    )

    def __post_init__(self):
        check_counts(self, "images")


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """The keys of a table's file."""

    title: str = option("", "what it is about, with its number in the paper")
    item: str = option("", "its number in the paper, such as Table 4")
    corner: str = option("", "what the first column is")
    cells: dict | None = option(None, "what all cells have in common")
    rows: tuple[dict, ...] = option((), "rows: name, and what their cells are")
    columns: tuple[dict, ...] = option((), "columns: name, and what their cells are")
    published: dict | None = option(None, "row -> published value of each column, or null")
    reference: str | None = option(None, "the row that the others are compared with")
    seeds: tuple[int, ...] = option((), "seeds; default: the paper's")
    chosen: dict | None = option(None, "setting that the paper leaves open -> what is taken, why")
    notes: tuple[str, ...] = option((), "what a reader of the table must know")

    def __post_init__(self):
        check_seeds(self.seeds)


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Numbers of a dataset, so that costs are known without it, and its settings."""

    classes: int = option(0, "number of classes")
    real: int = option(0, "number of images for training")
    test: int = option(0, "number of images for testing")
    images: int = option(5, "images made of each real one")
    title: str | None = option(None, "what tables call it; default: its name")
    place: dict | None = option(None, "options that choose its real images, in every command")
    train: dict | None = option(None, "options of its trainings")
    sets: dict | None = option(None, "set -> options of expand.py on this dataset")

    def __post_init__(self):
        check_counts(self, "classes", "real", "test", "images")


@dataclass(frozen=True, kw_only=True)
class PaperFile:
    """The keys of `common.yaml`."""

    title: str = option("", "the paper")
    reports: str = option("last", "epoch whose accuracy it reports", choices=("last", "best"))
    seeds: tuple[int, ...] = option((1, 2, 3), "seeds of its trainings")
    expand: dict | None = option(None, "options of expand.py, for all sets")
    train: dict | None = option(None, "options of all trainings")
    guide: dict | None = option(None, "options of the training of a guide")
    datasets: dict | None = option(None, "name -> its numbers and settings")
    sets: dict | None = option(None, "name -> method, and options of expand.py")
    chosen: dict | None = option(None, "settings that the paper leaves open, for all its tables")
    others: tuple[dict, ...] = option((), "items without a table of numbers: item, title, shown_by")

    def __post_init__(self):
        check_seeds(self.seeds)


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """How a set is made, beside the options of expand.py."""

    method: str = option("", "method of expand.py")
    prompts: str | None = option(
        None, "prompts that are written before", choices=("scenes", "lecf")
    )
    keep: str | None = option(None, "rule of expansion.filter: which images are trained on")
    training: dict | None = option(None, "options of what trains the method's embeddings")


@dataclass(frozen=True, kw_only=True)
class Other:
    """An item of a paper that is no table of numbers."""

    item: str = option("", "its number in the paper")
    title: str = option("", "what it is")
    shown_by: str = option("", "what shows it here, or why nothing can")
