"""Textual inversion: learn one new word for each class of a dataset, for --method da_fusion.

    python -m baselines.textual_inversion -d digits --shots 2 --output_dir checkpoint/digits-words
    python expand.py -d digits --shots 2 --method da_fusion --embeddings checkpoint/digits-words

The same command goes on after an interruption. Classes are divided by --split and --total_split,
or among the processes of `accelerate launch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from baselines.embeddings.command import ClassTrainer, Command
from baselines.textual_inversion.config import TextualInversionConfig
from expansion.common.errors import run_command

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def make_trainer(
    pipeline: StableDiffusionPipeline, config: TextualInversionConfig, folders: Mapping[str, str]
) -> ClassTrainer:
    """What trains a class; see `Command`."""
    from baselines.textual_inversion.trainer import WordTrainer

    return WordTrainer(pipeline, config, folders)


COMMAND = Command(TextualInversionConfig, make_trainer, __doc__)
main, parse = COMMAND.main, COMMAND.parse

if __name__ == "__main__":
    run_command(main)
