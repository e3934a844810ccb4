"""Train and evaluate a classifier on real + generated images.

    python train_expand.py caltech-101 resnet50 0.1 distdiff_5x False 0
    python train_expand.py -d digits --exp distdiff_10x --budget steps --max_train_steps 300

The generated images are data/<dataset>_expansion/<exp>; the runs are
checkpoint/<dataset>/<arch>_unpretrained_<exp>_lr<lr>/seed<k>. Finished runs are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.classifier.recipe import Recipe
from expansion.common.config import Layers, config_hash, load_yaml, option
from expansion.common.errors import require, run_command, shown, unknown_name
from expansion.common.files import check_outside
from expansion.data.datasets import classes_without_images
from expansion.data.label_noise import with_label_noise
from expansion.data.soft_labels import with_soft_labels
from expansion.generation.plan import IDENTITY_FILE
from expansion.images.content import content_summary, readable_records, same_pixels
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import Asked, is_other_set, read_expansion
from expansion.store.places import expansion_folder
from expansion.store.selection import Selection, select_images
from expansion.training.experiment import Arm, TrainData, arm_name, load_data, run_dir, train_seeds
from expansion.training.mixing import Mixing
from expansion.training.options import Learning, TrainConfig, parse_training

logger = logging.getLogger("train_expand")

# --labels -> the settings and the objective that decide what the generated images teach.
OBJECTIVES = {
    "seed": Learning(None, "expansion.training.objectives:Supervised"),
    "amst": Learning(
        "dreamda.self_training.config:AmstConfig", "dreamda.self_training.objective:SelfTraining"
    ),
    "soft": Learning(
        "baselines.labels.soft_labels_config:SoftLabelsConfig",
        "baselines.labels.soft_labels:SoftLabels",
        mixes_labels=True,
    ),
    "clip": Learning(
        "baselines.labels.clip_labels_config:ClipLabelsConfig",
        "baselines.labels.clip_labels:ClipLabels",
    ),
}
SEMI_SUPERVISED = Learning(
    "expansion.training.softmatch_config:SoftMatchConfig", "expansion.training.softmatch:SoftMatch"
)
# Option -> labels that it does not go with -> why.
NOT_WITH = {
    "real_share": {"soft": "which has a --min_labeled of its own"},
    "replace_probability": {
        "amst": "which learns from accepted and rejected generated images beside the real ones",
        "soft": "which goes through real and generated images side by side",
    },
    "soft_labels": dict.fromkeys(("amst", "soft", "clip"), "which labels the images by itself"),
    "only_generated": {
        "amst": "whose heads are trained on the real images",
        "soft": "which warms up on the real images",
    },
}
# What tells arms apart, by option: part of the name of the run's folder.
NAME_PARTS = {
    "max_variants": "first{:d}",
    "real_share": "real{:g}",
    "replace_probability": "replace{:g}",
    "only_generated": "generated",
    "soft_labels": "soft_labels",
    "label_noise": "noise{:g}",
    "labels": "{}",
}


@dataclass(frozen=True, kw_only=True)
class TrainExpandConfig(TrainConfig):
    """Settings of train_expand.py."""

    expanded_dir: str | None = option(
        None, "folder of the generated images; default: <data_dir>/<dataset>_expansion/<exp>"
    )
    on_incomplete: str = option(
        "fail",
        "what an expanded set that lacks images does: fail, or use what is there",
        choices=("fail", "use"),
    )
    labels: str = option(
        "seed",
        "label of a generated image: seed = that of its real image; amst = DreamDA's "
        "self-training; "
        "soft = the classifier's own predictions; clip = zero-shot CLIP's",
        choices=OBJECTIVES,
    )
    selection: str | None = option(
        None,
        "file of python -m expansion.filter: learn from the images alone that it keeps; its name "
        "becomes part of the arm's",
    )
    max_variants: int | None = option(
        None,
        "use only the first so many variants of each real image, as if no more had been made; of "
        "a selection those that it keeps among them; default: all",
    )
    real_share: float | None = option(
        None,
        "share of real images in every batch, 0 to 1, whatever their number; an epoch stays as "
        "many images as real and generated ones together; default: their share of all images",
    )
    replace_probability: float = option(
        0.0,
        "probability that a random variant of a real image stands in for it whenever it is drawn; "
        "an epoch is then a pass over the real images, and generated ones come in no other way; "
        "0: off",
    )
    only_generated: bool = option(
        False, "train on the generated images alone; real ones are still held out and tested on"
    )
    soft_labels: str | None = option(
        None,
        "JSON lines with probabilities that generated images are learnt by in place of their seed "
        "labels: first the classes, then the images; see docs/photos.md; default: none",
    )
    label_noise: float = option(
        0.0, "share of generated images given a wrong seed label on purpose, for studies"
    )
    label_noise_seed: int = option(0, "which images --label_noise takes")

    def __post_init__(self):
        super().__post_init__()
        require(
            0 <= self.label_noise <= 1, f"label_noise {self.label_noise}: give a share from 0 to 1"
        )
        require(
            self.max_variants is None or self.max_variants > 0,
            f"max_variants {self.max_variants}: give 1 or more",
        )
        require(
            self.real_share is None or 0 < self.real_share < 1,
            f"real_share {self.real_share}: give more than 0 and less than 1",
        )
        require(
            0 <= self.replace_probability <= 1,
            f"replace_probability {self.replace_probability}: give 0 to 1",
        )
        require(
            self.unlabeled_dir is None or self.labels in ("seed", "amst"),
            f"unlabeled_dir goes with --labels seed or amst, not {self.labels}",
        )
        require(
            self.soft_labels is None or not self.label_noise,
            "label_noise makes seed labels wrong, and soft_labels takes their place; give one",
        )
        mixing = self.chosen("real_share", "replace_probability", "only_generated")
        require(len(mixing) < 2, f"{' and '.join(mixing)} exclude each other; give one of them")
        for name in self.chosen(*NOT_WITH):
            reason = NOT_WITH[name].get(self.labels)
            require(reason is None, f"{name} does not go with --labels {self.labels}, {reason}")

    def chosen(self, *names: str) -> dict[str, Any]:
        """Those of the options that are not at their default, with their values."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value != defaults[name]}

    @property
    def mixing(self) -> Mixing:
        """How labelled batches are made up of real and generated images."""
        names = [field.name for field in dataclasses.fields(Mixing)]
        return Mixing(**{name: getattr(self, name) for name in names})


def main(arguments: Sequence[str] | None = None) -> None:
    positionals = ("dataset", "arch", "lr", "exp", "pretrained", "gpu")
    arguments = sys.argv[1:] if arguments is None else arguments
    config, recipe, learning, learning_config = parse_training(
        arguments, __doc__, positionals, TrainExpandConfig, _learning
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The settings, as far as they can be checked without images.
    require(
        config.exp is not None or config.expanded_dir is not None,
        "which expanded set? give --exp NAME (as in data/<dataset>_expansion/NAME) or "
        "--expanded_dir",
    )
    if learning.mixes_labels:
        _check_own_mixing(config, recipe)
    # Real and generated images.
    data = load_data(config, recipe)
    folder = expansion_folder(config.data_dir, data.dataset.name, config.exp or "")
    expanded_dir = Path(config.expanded_dir or folder)
    generated = generated_records(config, data, expanded_dir)
    # The arm: what it is called, what tells it apart, what it learns from.
    exp = expanded_arm_name(config.exp or expanded_dir.name, config, recipe, learning_config)
    facts = {
        "num_real": 0 if config.only_generated else len(data.train),
        "num_generated": len(generated),
        "labels": config.labels,
        "label_noise": config.label_noise,
        **config.chosen("max_variants", *dataclasses.asdict(config.mixing)),
        **soft_label_facts(generated),
    }
    if config.selection is not None:
        facts["selection"] = Selection.read(Path(config.selection)).rule
    arm = Arm(
        name=exp,
        folder=run_dir(config, recipe, data.dataset, exp),
        facts=facts,
        generated=generated,
        learning=learning,
        learning_config=learning_config,
        mixing=config.mixing,
    )
    # What reports say of it besides, then one run for each seed.
    information = settings_of_set(expanded_dir, arm.folder / "seed")
    if config.selection is not None:
        information["selection_file"] = os.path.relpath(config.selection, arm.folder / "seed")
    arm = dataclasses.replace(arm, information={"expanded_set": information})
    check_outside(arm.folder, {"the expanded set": expanded_dir})
    _check_not_told(expanded_dir, data, config.fold)
    train_seeds(config, recipe, data, arm)


def expanded_arm_name(
    exp: str, config: TrainExpandConfig, recipe: Recipe, learning_config: Any
) -> str:
    """The expanded set's name with what differs from plain training on it."""
    selection = Path(config.selection).stem if config.selection is not None else ""
    chosen = config.chosen(*NAME_PARTS)
    parts = [NAME_PARTS[name].format(value) for name, value in chosen.items()]
    return arm_name(exp, config, recipe, learning_config, selection, *parts)


def generated_records(
    config: TrainExpandConfig, data: TrainData, expanded_dir: Path
) -> list[ImageRecord]:
    """Readable variants of the training images: the first ones, or those of a selection, if asked.

    They get wrong labels if the config asks for them.
    """
    # Variants of an image that is not trained on would carry it in (--shots, --val_fraction).
    trained_on = {record.file_name: record for record in data.train}
    rest = [*data.dataset.records("train"), *data.val, *data.test]
    others = {record.file_name: record for record in rest}
    read = functools.partial(read_expansion, expanded_dir, trained_on, config.on_incomplete, others)
    # A selection is of the whole set.
    kept = read(None if config.selection is not None else config.max_variants)
    require(
        bool(kept), f"{expanded_dir} holds no variants of the {len(trained_on)} training images"
    )
    kept, _ = readable_records(kept, config.on_error)
    if is_other_set(expanded_dir):
        _check_other_set(kept, config, data, expanded_dir)
    else:
        _tell_of_images_without_variants(kept, trained_on, expanded_dir)
    if config.selection is not None:
        kept = select_images(config.selection, kept, expanded_dir, trained_on)
        if config.max_variants is not None:
            first = {record.file_name for record in read(config.max_variants)}
            kept = [record for record in kept if record.file_name in first]
            require(
                bool(kept),
                f"{config.selection} keeps none of the first {config.max_variants} variants of "
                "each real image; give a larger max_variants",
            )
    absent = classes_without_images(data.dataset.class_names, kept)
    require(
        not (config.only_generated and absent),
        f"{expanded_dir}: no generated image of {shown(absent)}, and only_generated trains on no "
        "others",
    )
    if config.label_noise:
        class_names = data.dataset.class_names
        kept = with_label_noise(kept, config.label_noise, config.label_noise_seed, class_names)
    if config.soft_labels is not None:
        kept = with_soft_labels(kept, Path(config.soft_labels), data.dataset.class_names)
    return kept


def _check_other_set(
    generated: Sequence[ImageRecord], config: TrainExpandConfig, data: TrainData, folder: Path
) -> None:
    """Check what only sets by expand.py promise: no leaks, and known real images.

    Raises:
        InputError: One is an image that is tested on, or the recipe needs the real images.
    """
    leaks = same_pixels(generated, [*data.val, *data.test])
    require(
        not leaks,
        f"{folder}: {len(leaks)} images are copies of images that are tested on: {shown(leaks, 3)};"
        " remove them",
    )
    if all(record.source for record in generated):
        return
    require(
        not config.replace_probability,
        f"{folder} does not say which real images its images stand for, so replace_probability "
        "cannot be used; leave it out",
    )
    if config.shots is not None or config.fold is not None or data.val:
        logger.warning(
            f"{folder} does not say which real images it was made from; held-out ones may be "
            "among them"
        )


def _tell_of_images_without_variants(
    generated: Sequence[ImageRecord], trained_on: Mapping[str, ImageRecord], expanded_dir: Path
) -> None:
    having = {record.source for record in generated}
    lacking = sorted(trained_on.keys() - having)
    if lacking:
        logger.warning(
            f"warning: {expanded_dir} has no variants of {len(lacking)} of {len(trained_on)} "
            f"training images ({shown(lacking, 3)}); the expand.py command for these images makes "
            "them"
        )


def _check_not_told(expanded_dir: Path, data: TrainData, fold: str | None) -> None:
    """Raise InputError if the method that made the set had seen images that are tested on."""
    path = expanded_dir / IDENTITY_FILE
    known = load_yaml(path).values.get("images") if path.is_file() else None
    if known is None:
        return
    require(
        fold is None or known == content_summary(data.train),
        f"{expanded_dir} depends on other images than the training images of --fold {fold}, and "
        f"those that are tested on may be among them; make it with --fold {fold}",
    )
    asked = Asked.read(expanded_dir)
    tested = {record.file_name for record in data.test}
    seen = sorted(tested.intersection(asked.trained_on)) if asked else []
    require(
        not seen,
        f"{expanded_dir} was made with the knowledge of {len(seen)} images that are tested on now "
        f"({shown(seen, 3)}), as training images of another split; make it anew, its guide too",
    )


def soft_label_facts(records: Sequence[ImageRecord]) -> dict[str, str]:
    """What identifies the probabilities that images are learnt by; empty if there are none."""
    given = {r.file_name: r.soft_label for r in records if r.soft_label is not None}
    return {"soft_labels": f"{len(given)} images, {config_hash(given)}"} if given else {}


def settings_of_set(expanded_dir: Path, run_dir: Path) -> dict[str, Any]:
    """Where the set lies and how it was made, as far as it says it; for reports alone."""
    place = {"folder": os.path.relpath(expanded_dir, run_dir)}
    path = expanded_dir / IDENTITY_FILE
    if not path.is_file():
        return place
    begun = load_yaml(path).values
    settings = begun.get("settings")
    facts = {key: begun[key] for key in ("method", "model", "resolution", "seed") if key in begun}
    return {**place, **facts, **(settings if isinstance(settings, dict) else {})}


def _check_own_mixing(config: TrainExpandConfig, recipe: Recipe) -> None:
    """Raise InputError if the recipe asks for what these labels do by themselves."""
    reason = f"--labels {config.labels} mixes images and softens labels by itself; leave out"
    require(not recipe.augmentation.changes_loss, f"{reason} --augment {recipe.augment}")
    smoothing = recipe.label_smoothing
    require(smoothing == 0, f"{reason} --label_smoothing {smoothing:g}")


def _learning(known: Layers) -> Learning:
    labels = known.peek("labels", TrainExpandConfig.labels)
    if labels not in list(OBJECTIVES):  # YAML may give a list, which a mapping cannot look up
        raise unknown_name("labels", labels, list(OBJECTIVES))
    return (
        SEMI_SUPERVISED if known.peek("unlabeled_dir") and labels == "seed" else OBJECTIVES[labels]
    )


if __name__ == "__main__":
    run_command(main)
