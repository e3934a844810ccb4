"""Options of `train_original.py` and `train_expand.py`, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from expansion.classifier.recipe import Recipe
from expansion.common.config import (
    CONFIG_DIR,
    Layers,
    Source,
    import_object,
    load_yaml,
    option,
)
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import DEFAULT_DATASET, dataset_of
from expansion.data.splits import read_fold

COMMON = frozenset(  # what --help shows
    "dataset arch pretrained lr exp seeds epochs budget max_train_steps batch_size image_size "
    "augment shots test_fraction val_fraction labels unlabeled_dir checkpoint_dir dry_run".split()
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training command beside the recipe."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    name: str | None = option(
        None, "what folders of results call the dataset; default: its name or last folder"
    )
    checkpoint_dir: str = option("checkpoint", "where run folders are made")
    exp: str | None = option(None, "name of the run; becomes part of its folder")
    tag: str | None = option(None, "appended to the run's name, to tell settings apart")
    seeds: tuple[int, ...] = option((1, 2, 3), "one run per seed")
    unlabeled_dir: str | None = option(
        None,
        "folder of unlabelled images to learn from by SoftMatch, searched in depth; an epoch then "
        "goes through all of them",
    )
    shots: int | None = option(None, "use only this many real images per class")
    subset_seed: int = option(
        0, "which images --shots keeps, and which of these --fold and --val_fraction hold out"
    )
    subset_file: str | None = option(
        None, "JSON list of the images that --shots kept: read if it exists, else written"
    )
    test_fraction: float | None = option(
        None, "share of each class for testing, of a dataset without a test split"
    )
    fold: str | None = option(
        None,
        "I/K: cross-validation on the training images; of K parts, part I (from 1) is tested on "
        "and the others are trained on; the test split is not read",
    )
    on_error: str = option("fail", "what an unreadable image does", choices=("fail", "skip"))
    dry_run: bool = option(False, "print the settings and the plan, and stop")

    def __post_init__(self):
        if self.fold is not None:
            read_fold(self.fold)


@dataclass(frozen=True)
class Learning:
    """How an arm learns.

    Attributes:
        config: Names the class of its settings, if it has any.
        objective: Names its objective.
        mixes_labels: Whether it mixes images and softens labels by itself.
    """

    config: str | None
    objective: str
    mixes_labels: bool = False

    def config_class(self) -> type | None:
        return import_object(self.config) if self.config else None


def parse_training(
    arguments: Sequence[str],
    doc: str,
    positionals: Sequence[str],
    config_class: type[TrainConfig],
    choose: Callable[[Layers], Learning],
) -> tuple[Any, Recipe, Learning, Any]:
    """Command line (positional or long options) > `--config` > dataset file > backbone > default.

    Args:
        doc: What `--help` says of the command.
        positionals: Names of the optional positional arguments, in order; "gpu" is a device number.
        config_class: The command's settings beside the recipe.
        choose: From what is known of the values to the way of learning, whose options are added.

    Returns:
        Run settings, recipe, the way of learning and its settings (None if it has none).
    """
    parser = OptionParser(description=doc, common=COMMON)
    names = " ".join(name.upper() for name in positionals)
    parser.take_words(positionals, names, "the papers' short form of the options of these names")
    learning = choose(parser.first_look(arguments, "labels", "unlabeled_dir"))
    classes = {"run": config_class, "recipe": Recipe, "labels": learning.config_class()}
    classes = {title: each for title, each in classes.items() if each is not None}
    given = parser.read(arguments, classes)
    if parser.words.get("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = parser.words["gpu"]
    name, dataset = dataset_of(given)
    given = given.over(Source(dataset.classifier or {}, f"dataset {name}: classifier"))
    arch = given.peek("arch", Recipe.arch)
    files = (CONFIG_DIR / "classifiers").glob("*.yaml")
    given = given.over(*(load_yaml(path) for path in files if path.stem == arch))
    config, recipe, *rest = given.compose(*classes.values())
    return config, recipe, learning, rest[0] if rest else None
