"""What `train_original.py` and `train_expand.py` share: images, run folders, loop over seeds."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.classifier.recipe import Recipe, Schedule
from expansion.common.config import config_hash, deciding, import_object, load_yaml
from expansion.common.devices import make_accelerator
from expansion.common.errors import require
from expansion.common.files import check_outside, file_fingerprint, is_done, to_yaml
from expansion.common.progress import training_bar
from expansion.data.copies import find_copies
from expansion.data.datasets import (
    ImageDataset,
    check_classes,
    choose_subset,
    load_dataset,
    unlabeled_records,
    write_subset,
)
from expansion.data.splits import fold_of, hold_out
from expansion.images.content import content_summary, pixels_of, readable_records
from expansion.images.records import ImageRecord
from expansion.training.mixing import Mixing
from expansion.training.options import Learning, TrainConfig
from expansion.training.run_lock import check_run, training_in

if TYPE_CHECKING:
    from accelerate import Accelerator

    from expansion.classifier.backbones import Classifier
    from expansion.training.objectives import ProgressBar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainData:
    """Real images of an experiment; the labels of `unlabeled` mean nothing.

    `subset_seed` is the seed by which they were drawn or divided; None if they were not.
    """

    dataset: ImageDataset
    train: list[ImageRecord]
    val: list[ImageRecord]
    test: list[ImageRecord]
    unlabeled: list[ImageRecord]
    subset_seed: int | None = None


def load_data(config: TrainConfig, recipe: Recipe) -> TrainData:
    """Read the dataset's real images; every image is decoded once to find broken ones early."""
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    if config.name is not None:
        dataset = dataclasses.replace(dataset, name=config.name)
    subset = (config.shots, config.subset_seed, config.subset_file)
    train = choose_subset(dataset.records("train"), *subset)
    train, _ = readable_records(train, config.on_error)
    if config.fold is None:
        test, _ = readable_records(dataset.records("test"), config.on_error)
        for problem in find_copies({"train": train, "test": test}, pixels_of([*train, *test]))[0]:
            logger.warning("warning: %s", problem)
    unlabeled: list[ImageRecord] = []
    if config.unlabeled_dir is not None:
        found = unlabeled_records(config.unlabeled_dir, dataset.reading)
        unlabeled, _ = readable_records(found, config.on_error)
    check_classes(dataset, train, least=2)
    if not config.dry_run:
        write_subset(train, *subset)
    if config.fold is not None:
        train, test = fold_of(train, config.fold, config.subset_seed)
    train, val = hold_out(train, recipe.val_fraction, config.subset_seed)
    is_drawn = config.shots is not None or config.fold is not None or bool(val)
    subset_seed = config.subset_seed if is_drawn else None
    return TrainData(dataset, train, val, test, unlabeled, subset_seed)


def run_dir(config: TrainConfig, recipe: Recipe, dataset: ImageDataset, exp: str | None) -> Path:
    """`<checkpoint_dir>/<dataset>/<arch>_{pretrained|unpretrained}[_<exp>]_lr<lr>`."""
    start = "pretrained" if recipe.pretrained else "unpretrained"
    middle = f"_{exp}" if exp else ""
    return Path(
        config.checkpoint_dir, dataset.name, f"{recipe.arch}_{start}{middle}_lr{recipe.lr:g}"
    )


def arm_name(
    exp: str | None, config: TrainConfig, recipe: Recipe, learning_config: Any, *further: str
) -> str | None:
    """The expanded set's name with what differs from plain training; None for the plain one."""
    ema_decay = getattr(learning_config, "ema_decay", 0.0)
    parts = [
        exp,
        *further,
        "softmatch" if config.unlabeled_dir else None,
        f"ema{ema_decay:g}" if ema_decay else None,
        recipe.augment if recipe.augment != "default" else None,
        recipe.crop if recipe.crop != "random" else None,
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
        information: What else a table may show of it.
        mixing: How labelled batches are made up of real and generated images.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    generated: Sequence[ImageRecord]
    learning: Learning
    learning_config: Any
    information: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mixing: Mixing = Mixing()

    @property
    def num_labeled(self) -> int:
        """Labelled images of an epoch, if none is repeated for the sake of unlabelled ones."""
        return self.mixing.images_per_epoch(self.facts["num_real"], self.facts["num_generated"])


def train_seeds(config: TrainConfig, recipe: Recipe, data: TrainData, arm: Arm) -> None:
    """One run per seed; finished runs are left alone, stopped ones go on.

    A dry run refuses what the run would refuse, and describes it.
    """
    # What cannot work is refused before weights load.
    require(bool(config.seeds), "seeds is an empty list; give one or more")
    unlabeled = config.unlabeled_dir
    check_outside(
        arm.folder, {"the dataset": data.dataset.root, "the unlabelled images": unlabeled}
    )
    accelerator = make_accelerator(recipe.mixed_precision)
    _check(recipe, data, arm, accelerator.num_processes)
    identities = {seed: _identity(recipe, data, arm, seed) for seed in config.seeds}
    for seed, identity in identities.items():
        check_run(arm.folder / f"seed{seed}", identity)
    if config.dry_run:
        print(_describe(config, recipe, data, arm))
        return
    # One after the other; several processes share each.
    for number, seed in enumerate(config.seeds, start=1):
        folder = arm.folder / f"seed{seed}"
        title = f"{arm.name}, seed {number} of {len(config.seeds)}"
        title += f" ({seed})" if seed != number else ""
        bar = functools.partial(training_bar, title, not accelerator.is_main_process)
        with training_in(folder, identities[seed], accelerator) as done_before:
            if not done_before:
                _train(recipe, data, arm, identities[seed], accelerator, bar)
        if accelerator.is_main_process:
            note = " (done before)" if done_before else ""
            logger.info("%s: %s%s", folder, _accuracies(folder), note)


def _check(recipe: Recipe, data: TrainData, arm: Arm, num_processes: int) -> None:
    """Raise InputError for what cannot work, before weights load."""
    from expansion.training.checks import check_training

    require(bool(data.test), f"{data.dataset.root}: no test image can be read")
    num_classes = len(data.dataset.class_names)
    check_training(recipe, num_classes, arm.num_labeled, num_processes)
    import_object(arm.learning.objective).check(recipe, arm.learning_config, num_processes)


def _identity(recipe: Recipe, data: TrainData, arm: Arm, seed: int) -> dict[str, Any]:
    """All that decides the result of a run."""
    decisive = deciding(recipe)
    if recipe.weights is not None and Path(recipe.weights).is_file():
        decisive["weights"] = file_fingerprint(recipe.weights)
    if recipe.zero_shot_head:
        template = data.dataset.config.prompt_template
        decisive["head_prompts"] = config_hash([template, *data.dataset.prompt_names])
    if arm.learning_config is not None:
        decisive["learning"] = deciding(arm.learning_config)
    images: dict[str, Sequence[ImageRecord]] = {
        "training_images": data.train,
        "test_images": data.test,
    }
    if data.val:
        images["validation_images"] = data.val
    if data.unlabeled:
        decisive["num_unlabeled"] = len(data.unlabeled)
        if arm.learning_config.fixed_epoch:
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
        "crop_bottom": data.dataset.config.crop_bottom,
        "reading": dataclasses.asdict(data.dataset.reading),
        **{title: content_summary(records) for title, records in images.items()},
        **decisive,
    }


def _train(
    recipe: Recipe,
    data: TrainData,
    arm: Arm,
    identity: Mapping[str, Any],
    accelerator: Accelerator,
    progress_bar: ProgressBar,
) -> None:
    """One run, from its first weights or its last checkpoint to its results."""
    import torch

    from expansion.training.objectives import Run, TrainingImages
    from expansion.training.trainer import Trainer, write_results

    # The network with its initial weights, and what else the run needs.
    begun = time.monotonic()
    seed, names = identity["seed"], data.dataset.class_names
    torch.manual_seed(seed)
    run = Run(
        classifier=_classifier(recipe, data.dataset),
        recipe=recipe,
        seed=seed,
        run_dir=arm.folder / f"seed{seed}",
        accelerator=accelerator,
        test_records=data.test,
        val_records=data.val,
        class_names=names,
        prompt_names=data.dataset.prompt_names,
        progress_bar=progress_bar,
    )
    # Earlier stages, then the last one, then the file by which the run counts as done.
    real = [] if arm.mixing.only_generated else data.train
    images = TrainingImages(real, arm.generated, data.unlabeled, arm.mixing)
    objective = import_object(arm.learning.objective).prepare(images, arm.learning_config, run)
    trainer = Trainer(run, objective)
    trainer.fit_with_bar(progress_bar, objective.title)
    if accelerator.is_main_process:
        write_results(trainer, {**identity, **_for_tables(data), **arm.information}, begun)
    accelerator.wait_for_everyone()


def _for_tables(data: TrainData) -> dict[str, int]:
    """Facts that decide no result, but what tables say of it."""
    learnt = {record.pixels for record in data.train}
    num_learnt = sum(record.pixels in learnt for record in data.test)
    drawn = {} if data.subset_seed is None else {"subset_seed": data.subset_seed}
    return {**drawn, "num_test_learnt": num_learnt} if num_learnt else drawn


def _images_per_epoch(data: TrainData, arm: Arm) -> int:
    """Labelled images of an epoch."""
    if not data.unlabeled:
        return arm.num_labeled
    return arm.learning_config.epoch_images(arm.num_labeled, len(data.unlabeled))


def _describe(config: TrainConfig, recipe: Recipe, data: TrainData, arm: Arm) -> str:
    facts, folder = arm.facts, arm.folder
    settings = {**dataclasses.asdict(config), **dataclasses.asdict(recipe)}
    if arm.learning_config is not None:
        settings |= dataclasses.asdict(arm.learning_config)
    steps = Schedule(recipe, _images_per_epoch(data, arm)).batch_sizes
    unlabeled = ""
    if data.unlabeled:
        num_unlabeled = len(data.unlabeled)
        unlabeled = arm.learning_config.passes(arm.num_labeled, num_unlabeled, sum(steps)) + "\n"
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


def _classifier(recipe: Recipe, dataset: ImageDataset) -> Classifier:
    """The network with its first weights, of which the global seed decides the random ones."""
    from expansion.classifier.backbones import Classifier

    classifier = Classifier(
        recipe.arch,
        len(dataset.class_names),
        recipe.image_size,
        recipe.pretrained,
        recipe.weights,
        recipe.zero_init_residual,
    )
    if recipe.zero_shot_head:
        from expansion.classifier.text_head import start_from_text

        template = dataset.config.prompt_template
        start_from_text(classifier, recipe.weights, dataset.prompt_names, template)
    return classifier


def _accuracies(folder: Path) -> str:
    results = load_yaml(folder / "results.yaml").values
    text = f"last {results['last_accuracy']:.2f} %, best on test {results['best_accuracy']:.2f} %"
    if "selected_accuracy" in results:
        text += f", selected on held-out images {results['selected_accuracy']:.2f} %"
    return text
