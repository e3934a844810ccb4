"""Options of `train_original.py` and `train_expand.py`, and how they are read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expansion.classifier.recipe import Recipe
from expansion.common.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    import_object,
    load_yaml,
    option,
)
from expansion.common.errors import brief, require
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import DEFAULT_DATASET, dataset_config

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
    subset_seed: int = option(0, "which images --shots keeps")
    subset_file: str | None = option(
        None, "JSON list of the images that --shots kept: read if it exists, else written"
    )
    test_fraction: float | None = option(
        None, "share of each class for testing, of a dataset without a test split"
    )
    on_error: str = option("fail", "what an unreadable image does", choices=("fail", "skip"))
    dry_run: bool = option(False, "print the settings and the plan, and stop")


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
    choose: Callable[[Mapping[str, Any]], Learning],
) -> tuple[Any, Recipe, Learning, Any]:
    """Command line (positional or long options) > `--config` > dataset file > backbone > default.

    Args:
        positionals: Names of the optional positional arguments, in order; "gpu" is a device number.
        choose: From what is known of the values to the way of learning, whose options are added.

    Returns:
        Run settings, recipe, the way of learning and its settings (None if it has none).
    """
    given, known = _first_look(arguments)
    learning = choose(known)
    classes = [c for c in (config_class, Recipe, learning.config_class()) if c is not None]

    parser = OptionParser(
        description=doc,
        common=COMMON,
        allow_abbrev=False,  # or "--label amst" would be read here and not above
    )
    parser.add_argument(
        "positional",
        nargs="*",
        metavar=" ".join(name.upper() for name in positionals),
        help="the papers' short form of the options of these names",
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    for title, each in zip(("run", "recipe", "labels"), classes):
        add_options(parser, each, title)
    options = parser.parse_args(arguments)
    require(
        len(options.positional) <= len(positionals),
        f"too many positional arguments; expected at most {' '.join(positionals)}",
    )
    short = dict(zip(positionals, map(_value, options.positional)))
    gpu = short.pop("gpu", None)
    if gpu is not None and gpu != "":
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    typed = [
        *given,
        Source(short, "command line"),
        command_line_source(options, ignore=("positional", "config")),
    ]
    name, data_dir = config_class.dataset, config_class.data_dir
    for source in typed:
        name, data_dir = (
            source.values.get("dataset", name),
            source.values.get("data_dir", data_dir),
        )
    name, data_dir = (v if isinstance(v, str) else brief(v) for v in (name, data_dir))
    dataset = dataset_config(name, data_dir)
    of_dataset = Source(dataset.classifier or {}, f"dataset {name}: classifier")
    sources = [*_recipe_files([of_dataset, *typed]), of_dataset, *typed]
    config, recipe, *rest = compose(classes, sources)
    return config, recipe, learning, rest[0] if rest else None


def _recipe_files(sources: Sequence[Source]) -> list[Source]:
    """The default recipe and, where there is one, that of the backbone that `sources` choose."""
    folder = CONFIG_DIR / "classifiers"
    default = load_yaml(folder / "default.yaml")
    arch = Recipe.arch
    for source in (default, *sources):
        arch = source.values.get("arch", arch)
    files = {path.stem: path for path in folder.glob("*.yaml")}
    own = files.get(arch) if isinstance(arch, str) else None
    return [default] if own is None else [default, load_yaml(own)]


def _first_look(arguments: Sequence[str]) -> tuple[list[Source], dict[str, Any]]:
    """The `--config` files, and the values that decide which further options there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="*", default=[])
    for name in ("labels", "unlabeled_dir"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    found = vars(parser.parse_known_args(arguments)[0])
    given = [load_yaml(path) for path in found.pop("config")]
    in_files = {key: value for source in given for key, value in source.values.items()}
    return given, {**in_files, **found}


def _value(text: str) -> Any:
    """A positional argument as a number or boolean where it reads like one."""
    if text in ("True", "False"):
        return text == "True"
    return text
