"""Train and evaluate a classifier on the real images; it also serves as DistDiff's guide.

    python train_original.py caltech-101 resnet50 0.1 False 0
    python train_original.py -d digits --shots 2 --budget steps --max_train_steps 300

One run per seed, in checkpoint/<dataset>/<arch>_unpretrained_lr<lr>/seed<k>. Finished runs are left
alone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from expansion.common.errors import run_command
from expansion.training.experiment import Arm, arm_name, load_data, run_dir, train_seeds
from expansion.training.options import Learning, TrainConfig, parse_training

SUPERVISED = Learning(None, "expansion.training.objectives:Supervised")
SEMI_SUPERVISED = Learning(
    "expansion.training.softmatch_config:SoftMatchConfig", "expansion.training.softmatch:SoftMatch"
)


def main(arguments: Sequence[str] | None = None) -> None:
    positionals = ("dataset", "arch", "lr", "pretrained", "gpu")
    arguments = sys.argv[1:] if arguments is None else arguments
    config, recipe, learning, learning_config = parse_training(
        arguments,
        __doc__,
        positionals,
        TrainConfig,
        lambda known: SEMI_SUPERVISED if known.peek("unlabeled_dir") else SUPERVISED,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = load_data(config, recipe)
    exp = arm_name(config.exp, config, recipe, learning_config)
    arm = Arm(
        name=exp or "Original",
        folder=run_dir(config, recipe, data.dataset, exp),
        facts={"num_real": len(data.train), "num_generated": 0},
        generated=(),
        learning=learning,
        learning_config=learning_config,
    )
    train_seeds(config, recipe, data, arm)


if __name__ == "__main__":
    run_command(main)
