"""What `train_original.py` and `train_expand.py` share: options, run folders, loop over seeds."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.checkpoints import file_fingerprint
from expansion.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    deciding,
    import_object,
    load_yaml,
    option,
    require,
)
from expansion.content import content_summary, readable_records
from expansion.devices import make_accelerator
from expansion.errors import brief
from expansion.image_datasets import (
    DEFAULT_DATASET,
    ImageDataset,
    ImageRecord,
    choose_subset,
    dataset_config,
    load_dataset,
    unlabeled_records,
    write_subset,
)
from expansion.progress import training_bar
from expansion.recipe import Recipe, Schedule
from expansion.run_lock import check_run
from expansion.runs import check_outside, is_done, to_yaml
from expansion.splits import hold_out

if TYPE_CHECKING:
    from accelerate import Accelerator

    from expansion.backbones import Classifier
    from expansion.objectives import ProgressBar
    from expansion.training import Trainer

logger = logging.getLogger(__name__)


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
class TrainData:
    """Real images of an experiment; the labels of `unlabeled` mean nothing."""

    dataset: ImageDataset
    train: list[ImageRecord]
    val: list[ImageRecord]
    test: list[ImageRecord]
    unlabeled: list[ImageRecord]


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

    parser = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


def load_data(config: TrainConfig, recipe: Recipe) -> TrainData:
    """Read the dataset's real images; every image is decoded once to find broken ones early."""
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    if config.name is not None:
        dataset = dataclasses.replace(dataset, name=config.name)
    subset = (config.shots, config.subset_seed, config.subset_file)
    train = choose_subset(dataset.records("train"), *subset)
    train, _ = readable_records(train, config.on_error)
    test, _ = readable_records(dataset.records("test"), config.on_error)
    unlabeled: list[ImageRecord] = []
    if config.unlabeled_dir is not None:
        found = unlabeled_records(config.unlabeled_dir, dataset.reading)
        unlabeled, _ = readable_records(found, config.on_error)
    present = {record.label for record in train}
    absent = [c for label, c in enumerate(dataset.class_names) if label not in present]
    require(not absent, f"no readable training image of class {', '.join(absent)}")
    require(
        len(dataset.class_names) > 1,
        f"{dataset.root} has only the class {dataset.class_names[0]!r}; a classifier needs two or "
        "more",
    )
    if not config.dry_run:
        write_subset(train, *subset)
    train, val = hold_out(train, recipe.val_fraction, config.subset_seed)
    return TrainData(dataset, train, val, test, unlabeled)


def run_dir(config: TrainConfig, recipe: Recipe, dataset: ImageDataset, exp: str | None) -> Path:
    """`<checkpoint_dir>/<dataset>/<arch>_{pretrained|unpretrained}[_<exp>]_lr<lr>`."""
    start = "pretrained" if recipe.pretrained else "unpretrained"
    middle = f"_{exp}" if exp else ""
    return Path(
        config.checkpoint_dir, dataset.name, f"{recipe.arch}_{start}{middle}_lr{recipe.lr:g}"
    )


def arm_name(exp: str | None, config: TrainConfig, recipe: Recipe, *further: str) -> str | None:
    """The expanded set's name with what differs from plain training; None for the plain one."""
    parts = [
        exp,
        *further,
        "softmatch" if config.unlabeled_dir else None,
        recipe.augment if recipe.augment != "default" else None,
        config.tag,
    ]
    return "_".join(part for part in parts if part) or None


@dataclass(frozen=True)
class Arm:
    """One row of a table: a way to train, run once per seed.

    Attributes:
        name: In the tables of parse_logs.py.
        folder: Holds `seed<k>` for every seed.
        facts: What else decides the result, and counts for the tables.
        generated: Images that join the real ones.
        learning: What is learnt from them.
        learning_config: Its settings.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    generated: Sequence[ImageRecord]
    learning: Learning
    learning_config: Any


def train_seeds(config: TrainConfig, recipe: Recipe, data: TrainData, arm: Arm) -> None:
    """One run per seed; finished runs are left alone, stopped ones go on.

    A dry run refuses what the run would refuse, and describes it.
    """
    require(bool(config.seeds), "seeds is an empty list; give one or more")
    inputs = {"the dataset": data.dataset.root, "the unlabelled images": config.unlabeled_dir}
    check_outside(arm.folder, inputs)
    accelerator = make_accelerator(recipe.mixed_precision)
    _check(recipe, data, arm, accelerator.num_processes)
    for seed in config.seeds:
        check_run(arm.folder / f"seed{seed}", _identity(recipe, data, arm, seed))
    if config.dry_run:
        print(_describe(config, recipe, data, arm))
        return
    from expansion.training import run_once

    for number, seed in enumerate(config.seeds, start=1):
        run_folder = arm.folder / f"seed{seed}"
        title = f"{arm.name}, seed {number} of {len(config.seeds)}"
        title += f" ({seed})" if seed != number else ""
        bar = functools.partial(training_bar, title, not accelerator.is_main_process)
        make_trainer = functools.partial(_make_trainer, recipe, data, arm, seed, accelerator, bar)
        identity = _identity(recipe, data, arm, seed)
        trained = run_once(run_folder, identity, make_trainer, bar, accelerator)
        if accelerator.is_main_process:
            note = "" if trained else " (done before)"
            logger.info("%s: %s%s", run_folder, _accuracies(run_folder), note)


def _check(recipe: Recipe, data: TrainData, arm: Arm, num_processes: int) -> None:
    """Raise InputError for what cannot work, before weights load."""
    from expansion.training_checks import check_training

    require(bool(data.test), f"{data.dataset.root}: no test image can be read")
    num_classes = len(data.dataset.class_names)
    check_training(recipe, num_classes, len(data.train) + len(arm.generated), num_processes)
    import_object(arm.learning.objective).check(recipe, arm.learning_config, num_processes)


def _identity(recipe: Recipe, data: TrainData, arm: Arm, seed: int) -> dict[str, Any]:
    """All that decides the result of a run."""
    decisive = deciding(recipe)
    if recipe.weights is not None and Path(recipe.weights).is_file():
        decisive["weights"] = file_fingerprint(recipe.weights)
    if arm.learning_config is not None:
        decisive["learning"] = deciding(arm.learning_config)
    images = {"training_images": data.train, "test_images": data.test}
    if data.val:
        images["validation_images"] = data.val
    if data.unlabeled:
        decisive["num_unlabeled"] = len(data.unlabeled)
        decisive["images_per_epoch"] = _images_per_epoch(data, arm)
        images["unlabeled"] = data.unlabeled
    if arm.generated:
        images["generated"] = arm.generated
    return {
        "arm": arm.name,
        "dataset": data.dataset.name,
        "seed": seed,
        **arm.facts,
        "num_test": len(data.test),
        **{title: content_summary(records) for title, records in images.items()},
        **decisive,
    }


def _build_classifier(recipe: Recipe, data: TrainData) -> Classifier:
    from expansion.backbones import Classifier

    return Classifier(
        recipe.arch,
        len(data.dataset.class_names),
        recipe.image_size,
        recipe.pretrained,
        recipe.weights,
        recipe.zero_init_residual,
    )


def _make_trainer(
    recipe: Recipe,
    data: TrainData,
    arm: Arm,
    seed: int,
    accelerator: Accelerator,
    progress_bar: ProgressBar,
) -> Trainer:
    import torch

    from expansion.objectives import Run, TrainingImages
    from expansion.training import Trainer

    torch.manual_seed(seed)
    run = Run(
        classifier=_build_classifier(recipe, data),
        recipe=recipe,
        seed=seed,
        run_dir=arm.folder / f"seed{seed}",
        accelerator=accelerator,
        test_records=data.test,
        val_records=data.val,
        class_names=data.dataset.class_names,
        prompt_names=data.dataset.prompt_names,
        progress_bar=progress_bar,
    )
    images = TrainingImages(data.train, arm.generated, data.unlabeled)
    objective_class = import_object(arm.learning.objective)
    return Trainer(run, objective_class.build(images, arm.learning_config, run))


def _images_per_epoch(data: TrainData, arm: Arm) -> int:
    """Labelled images of an epoch."""
    num_images = arm.facts["num_real"] + arm.facts["num_generated"]
    if not data.unlabeled:
        return num_images
    return arm.learning_config.epoch_images(num_images, len(data.unlabeled))


def _describe(config: TrainConfig, recipe: Recipe, data: TrainData, arm: Arm) -> str:
    facts, folder = arm.facts, arm.folder
    settings = {**dataclasses.asdict(config), **dataclasses.asdict(recipe)}
    if arm.learning_config is not None:
        settings |= dataclasses.asdict(arm.learning_config)
    steps = Schedule(recipe, _images_per_epoch(data, arm)).batch_sizes
    unlabeled = ""
    if data.unlabeled:
        num_labeled = facts["num_real"] + facts["num_generated"]
        unlabeled = arm.learning_config.passes(num_labeled, len(data.unlabeled), sum(steps)) + "\n"
    states = {seed: "done" if is_done(folder / f"seed{seed}") else "to do" for seed in config.seeds}
    return (
        f"{to_yaml(settings)}\n"
        f"arm: {arm.name}\n"
        f"training images: {facts['num_real']} real + {facts['num_generated']} generated; "
        f"{len(data.val)} held out, {len(data.test)} for testing; "
        f"{len(data.dataset.class_names)} classes\n"
        f"optimiser steps: {len(steps)} of up to {max(steps)} images\n"
        f"{unlabeled}"
        f"output: {folder}; " + ", ".join(f"seed {seed} {state}" for seed, state in states.items())
    )


def _value(text: str) -> Any:
    """A positional argument as a number or boolean where it reads like one."""
    if text in ("True", "False"):
        return text == "True"
    return text


def _accuracies(folder: Path) -> str:
    results = load_yaml(folder / "results.yaml").values
    text = f"last {results['last_accuracy']:.2f} %, best on test {results['best_accuracy']:.2f} %"
    if "selected_accuracy" in results:
        text += f", selected on held-out images {results['selected_accuracy']:.2f} %"
    return text
