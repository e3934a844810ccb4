"""Train and evaluate a classifier on real + generated images.

    python train_expand.py caltech-101 resnet50 0.1 distdiff_5x False 0
    python train_expand.py -d digits --exp distdiff_10x --budget steps --max_train_steps 300

The generated images are data/<dataset>_expansion/<exp>; the runs are
checkpoint/<dataset>/<arch>_unpretrained_<exp>_lr<lr>/seed<k>. Finished runs are left alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.classifier.recipe import Recipe
from expansion.common.config import Layers, load_yaml, option
from expansion.common.errors import require, run_command, unknown_name
from expansion.common.files import check_outside
from expansion.data.label_noise import with_label_noise
from expansion.generation.plan import IDENTITY_FILE
from expansion.images.content import readable_records
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import read_expansion
from expansion.store.places import expansion_folder
from expansion.store.selection import Selection, select_images
from expansion.training.experiment import Arm, TrainData, arm_name, load_data, run_dir, train_seeds
from expansion.training.options import Learning, TrainConfig, parse_training

logger = logging.getLogger("train_expand")

# --labels -> the settings and the objective that decide what the generated images teach.
OBJECTIVES = {
    "seed": Learning(None, "expansion.training.objectives:Supervised"),
    "amst": Learning(
        "dreamda.self_training.config:AmstConfig", "dreamda.self_training.objective:SelfTraining"
    ),
    "soft": Learning(
        "baselines.soft_labels_config:SoftLabelsConfig",
        "baselines.soft_labels:SoftLabels",
        mixes_labels=True,
    ),
    "clip": Learning(
        "baselines.clip_labels_config:ClipLabelsConfig", "baselines.clip_labels:ClipLabels"
    ),
}
SEMI_SUPERVISED = Learning(
    "expansion.training.softmatch_config:SoftMatchConfig", "expansion.training.softmatch:SoftMatch"
)


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
    label_noise: float = option(
        0.0, "share of generated images given a wrong seed label on purpose, for studies"
    )
    label_noise_seed: int = option(0, "which images --label_noise takes")

    def __post_init__(self):
        require(
            0 <= self.label_noise <= 1, f"label_noise {self.label_noise}: give a share from 0 to 1"
        )
        require(
            self.unlabeled_dir is None or self.labels == "seed",
            f"unlabeled_dir goes with --labels seed, not {self.labels}",
        )


def main(arguments: Sequence[str] | None = None) -> None:
    positionals = ("dataset", "arch", "lr", "exp", "pretrained", "gpu")
    arguments = sys.argv[1:] if arguments is None else arguments
    config, recipe, learning, learning_config = parse_training(
        arguments, __doc__, positionals, TrainExpandConfig, _learning
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    require(
        config.exp is not None or config.expanded_dir is not None,
        "which expanded set? give --exp NAME (as in data/<dataset>_expansion/NAME) or "
        "--expanded_dir",
    )
    if learning.mixes_labels:
        _check_own_mixing(config, recipe)
    data = load_data(config, recipe)
    folder = expansion_folder(config.data_dir, data.dataset.name, config.exp or "")
    expanded_dir = Path(config.expanded_dir or folder)
    generated = generated_records(config, data, expanded_dir)
    exp = expanded_arm_name(config.exp or expanded_dir.name, config, recipe)
    facts = {
        "num_real": len(data.train),
        "num_generated": len(generated),
        "labels": config.labels,
        "label_noise": config.label_noise,
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
    )
    information = settings_of_set(expanded_dir, arm.folder / "seed")
    if config.selection is not None:
        information["selection_file"] = os.path.relpath(config.selection, arm.folder / "seed")
    arm = dataclasses.replace(arm, information={"expanded_set": information})
    check_outside(arm.folder, {"the expanded set": expanded_dir})
    train_seeds(config, recipe, data, arm)


def expanded_arm_name(exp: str, config: TrainExpandConfig, recipe: Recipe) -> str:
    """The expanded set's name with what differs from plain training on it."""
    noise = f"noise{config.label_noise:g}" if config.label_noise else ""
    labels = config.labels if config.labels != "seed" else ""
    selection = Path(config.selection).stem if config.selection is not None else ""
    return arm_name(exp, config, recipe, selection, noise, labels)


def generated_records(
    config: TrainExpandConfig, data: TrainData, expanded_dir: Path
) -> list[ImageRecord]:
    """Readable variants of the training images, those of a selection if the config names one.

    They get wrong labels if the config asks for them.
    """
    # Variants of an image that is not trained on would carry it in (--shots, --val_fraction).
    trained_on = {record.file_name: record for record in data.train}
    rest = [*data.dataset.records("train"), *data.val]
    others = {record.file_name: record for record in rest}
    kept = read_expansion(expanded_dir, trained_on, config.on_incomplete, others)
    require(
        bool(kept), f"{expanded_dir} holds no variants of the {len(trained_on)} training images"
    )
    kept, _ = readable_records(kept, config.on_error)
    if config.selection is not None:
        kept = select_images(config.selection, kept, expanded_dir, trained_on)
    if config.label_noise:
        class_names = data.dataset.class_names
        kept = with_label_noise(kept, config.label_noise, config.label_noise_seed, class_names)
    return kept


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
