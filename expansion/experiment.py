"""What `train_original.py` and `train_expand.py` share: options, run folders, loop over seeds."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from expansion.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    config_hash,
    load_yaml,
    option,
    require,
)
from expansion.image_datasets import (
    DEFAULT_DATASET,
    ImageDataset,
    ImageRecord,
    dataset_config,
    few_shot,
    hold_out,
    load_dataset,
    readable_records,
)
from expansion.recipe import Recipe, Schedule
from expansion.runs import is_done, to_yaml

if TYPE_CHECKING:
    from accelerate import Accelerator

    from expansion.training import Objective, Trainer

logger = logging.getLogger(__name__)

NOT_DECISIVE = ("workers",)  # recipe fields that change no result


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training command beside the recipe."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    checkpoint_dir: str = option("checkpoint", "where run folders are made")
    exp: str | None = option(None, "name of the run; becomes part of its folder")
    seeds: tuple[int, ...] = option((1, 2, 3), "one run per seed")
    shots: int | None = option(None, "use only this many real images per class")
    subset_seed: int = option(0, "which images --shots keeps")
    on_error: str = option("fail", "what an unreadable image does", choices=("fail", "skip"))
    dry_run: bool = option(False, "print the settings and the plan, and stop")


@dataclass(frozen=True)
class TrainData:
    """Real images of an experiment."""

    dataset: ImageDataset
    train: list[ImageRecord]
    val: list[ImageRecord]
    test: list[ImageRecord]


def parse_training(
    arguments: Sequence[str], doc: str, positionals: Sequence[str], config_class: type[TrainConfig]
) -> tuple[Any, Recipe]:
    """Command line (positional or long options) > `--config` > dataset file > recipe file.

    Args:
        positionals: Names of the optional positional arguments, in order; "gpu" is a device number.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "positional",
        nargs="*",
        metavar=" ".join(name.upper() for name in positionals),
        help="the papers' short form of the options of these names",
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    add_options(parser, config_class, "run")
    add_options(parser, Recipe, "recipe")
    options = parser.parse_args(arguments)
    require(
        len(options.positional) <= len(positionals),
        f"too many positional arguments; expected at most {' '.join(positionals)}",
    )
    short = dict(zip(positionals, map(_value, options.positional)))
    gpu = short.pop("gpu", None)
    if gpu is not None and gpu != "":
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    given = [load_yaml(path) for path in options.config]
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
    dataset = dataset_config(str(name), str(data_dir))
    sources = [
        load_yaml(CONFIG_DIR / "classifiers" / "default.yaml"),
        Source(dataset.classifier or {}, f"dataset {name}: classifier"),
        *typed,
    ]
    return tuple(compose([config_class, Recipe], sources))


def load_data(config: TrainConfig, recipe: Recipe) -> TrainData:
    """Read the dataset's real images; every image is decoded once to find broken ones early."""
    dataset = load_dataset(config.dataset, config.data_dir)
    train = few_shot(dataset.records("train"), config.shots, config.subset_seed)
    train, _ = readable_records(train, config.on_error)
    test, _ = readable_records(dataset.records("test"), config.on_error)
    present = {record.label for record in train}
    absent = [c for label, c in enumerate(dataset.class_names) if label not in present]
    require(not absent, f"no readable training image of class {', '.join(absent)}")
    train, val = hold_out(train, recipe.val_fraction, config.subset_seed)
    return TrainData(dataset, train, val, test)


def run_dir(config: TrainConfig, recipe: Recipe, dataset: ImageDataset, exp: str | None) -> Path:
    """`<checkpoint_dir>/<dataset>/<arch>_{pretrained|unpretrained}[_<exp>]_lr<lr>`."""
    start = "pretrained" if recipe.pretrained else "unpretrained"
    middle = f"_{exp}" if exp else ""
    return Path(
        config.checkpoint_dir, dataset.name, f"{recipe.arch}_{start}{middle}_lr{recipe.lr:g}"
    )


@dataclass(frozen=True)
class Arm:
    """One row of a table: a way to train, run once per seed.

    Attributes:
        name: In the tables of parse_logs.py.
        folder: Holds `seed<k>` for every seed.
        facts: What else decides the result, and counts for the tables.
        make_objective: From a seed.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    make_objective: Callable[[int], Objective]


def train_seeds(config: TrainConfig, recipe: Recipe, data: TrainData, arm: Arm) -> None:
    """One run per seed; finished runs are left alone, stopped ones go on."""
    if config.dry_run:
        print(_describe(config, recipe, data, arm))
        return
    from accelerate import Accelerator

    from expansion.backbones import check_arch
    from expansion.training import run_once

    check_arch(recipe.arch)
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    for seed in config.seeds:
        run_folder = arm.folder / f"seed{seed}"
        make_trainer = functools.partial(_make_trainer, recipe, data, arm, seed, accelerator)
        with _progress_bar(f"{arm.name} seed {seed}") as progress:
            identity = _identity(recipe, data, arm, seed)
            trained = run_once(run_folder, identity, make_trainer, progress, accelerator)
        note = "" if trained else " (done before)"
        logger.info("%s: %s%s", run_folder, _accuracies(run_folder), note)


def _identity(recipe: Recipe, data: TrainData, arm: Arm, seed: int) -> dict[str, Any]:
    """All that decides the result of a run."""
    decisive = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in NOT_DECISIVE}
    return {
        "arm": arm.name,
        "dataset": data.dataset.name,
        "seed": seed,
        **arm.facts,
        "num_test": len(data.test),
        "real_images": config_hash([r.file_name for r in data.train + data.val + data.test]),
        **decisive,
    }


def _make_trainer(
    recipe: Recipe, data: TrainData, arm: Arm, seed: int, accelerator: Accelerator
) -> Trainer:
    import torch

    from expansion.backbones import Classifier
    from expansion.training import Trainer

    torch.manual_seed(seed)
    num_classes = len(data.dataset.class_names)
    return Trainer(
        Classifier(recipe.arch, num_classes, recipe.image_size, recipe.pretrained),
        arm.make_objective(seed),
        recipe,
        test_records=data.test,
        val_records=data.val,
        run_dir=arm.folder / f"seed{seed}",
        seed=seed,
        accelerator=accelerator,
        extra_state={"class_names": list(data.dataset.class_names)},
    )


def _describe(config: TrainConfig, recipe: Recipe, data: TrainData, arm: Arm) -> str:
    facts, folder = arm.facts, arm.folder
    settings = {**dataclasses.asdict(config), **dataclasses.asdict(recipe)}
    num_images = facts["num_real"] + facts["num_generated"]
    steps = Schedule(recipe, num_images).batch_sizes
    states = {seed: "done" if is_done(folder / f"seed{seed}") else "to do" for seed in config.seeds}
    return (
        f"{to_yaml(settings)}\n"
        f"arm: {arm.name}\n"
        f"training images: {facts['num_real']} real + {facts['num_generated']} generated; "
        f"{len(data.val)} held out, {len(data.test)} for testing; "
        f"{len(data.dataset.class_names)} classes\n"
        f"optimiser steps: {len(steps)} of up to {max(steps)} images\n"
        f"output: {folder}; " + ", ".join(f"seed {seed} {state}" for seed, state in states.items())
    )


def _value(text: str) -> Any:
    """A positional argument as a number or boolean where it reads like one."""
    if text in ("True", "False"):
        return text == "True"
    return text


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    with tqdm(desc=name, unit="step", disable=None) as bar:

        def progress(step: int, row: Mapping[str, float]) -> None:
            bar.update(step - bar.n)
            if row:
                bar.set_postfix(test=f"{row['test_accuracy']:.1f}%", refresh=False)

        yield progress


def _accuracies(folder: Path) -> str:
    results = load_yaml(folder / "results.yaml").values
    text = f"last {results['last_accuracy']:.2f} %, best on test {results['best_accuracy']:.2f} %"
    if "selected_accuracy" in results:
        text += f", selected on held-out images {results['selected_accuracy']:.2f} %"
    return text
