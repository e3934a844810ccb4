"""Train and evaluate a classifier on real + generated images.

    python train_expand.py caltech-101 resnet50 0.1 distdiff_5x False 0
    python train_expand.py -d digits --exp distdiff_10x --budget steps --max_train_steps 300

The generated images are data/<dataset>_expansion/<exp>; the runs are
checkpoint/<dataset>/<arch>_unpretrained_<exp>_lr<lr>/seed<k>. Finished runs are left alone.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.config import config_hash, option, require
from expansion.errors import run_command
from expansion.experiment import Arm, TrainConfig, load_data, parse_training, run_dir, train_seeds
from expansion.image_datasets import readable_records
from expansion.writer import read_expansion, read_manifest

logger = logging.getLogger("train_expand")

# --labels -> the objective that decides what the generated images teach.
OBJECTIVES = {"seed": "expansion.training:Supervised"}


@dataclass(frozen=True, kw_only=True)
class TrainExpandConfig(TrainConfig):
    """Settings of train_expand.py."""

    expanded_dir: str | None = option(
        None, "folder of the generated images; default: <data_dir>/<dataset>_expansion/<exp>"
    )
    labels: str = option(
        "seed",
        "label of a generated image: seed = that of its real image",
        choices=tuple(OBJECTIVES),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    positionals = ("dataset", "arch", "lr", "exp", "pretrained", "gpu")
    arguments = sys.argv[1:] if arguments is None else arguments
    config, recipe = parse_training(arguments, __doc__, positionals, TrainExpandConfig)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    require(
        config.exp is not None or config.expanded_dir is not None,
        "which expanded set? give --exp NAME (as in data/<dataset>_expansion/NAME) or "
        "--expanded_dir",
    )
    data = load_data(config, recipe)
    folder = Path(config.data_dir) / f"{data.dataset.name}_expansion" / (config.exp or "")
    expanded_dir = Path(config.expanded_dir or folder)
    generated = read_expansion(expanded_dir, data.dataset.class_names)
    made_with = sorted({str(row.get("config")) for row in read_manifest(expanded_dir)})
    # Variants of an image that is not trained on would carry it in (--shots, --val_fraction).
    trained_on = {record.file_name for record in data.train}
    kept = [record for record in generated if record.source in trained_on]
    if len(kept) < len(generated):
        logger.info("%d images of other real images are left out", len(generated) - len(kept))
    require(
        bool(kept), f"{expanded_dir} holds no variants of the {len(trained_on)} training images"
    )
    kept, _ = readable_records(kept, config.on_error)

    def make_objective(seed: int):
        module, name = OBJECTIVES[config.labels].split(":")
        return getattr(importlib.import_module(module), name)(data.train + kept, recipe, seed)

    exp = config.exp or expanded_dir.name
    if recipe.augment != "default":
        exp = f"{exp}_{recipe.augment}"
    arm = Arm(
        name=exp,
        folder=run_dir(config, recipe, data.dataset, exp),
        facts={
            "num_real": len(data.train),
            "num_generated": len(kept),
            "labels": config.labels,
            "generated_images": config_hash([made_with, [r.file_name for r in kept]]),
        },
        make_objective=make_objective,
    )
    train_seeds(config, recipe, data, arm)


if __name__ == "__main__":
    run_command(main)
