"""Diffusion Inversion: learn an embedding of each real image, for its --method.

    python -m baselines.diffusion_inversion -d digits --output_dir checkpoint/digits-inverted
    python expand.py -d digits --method diffusion_inversion --embeddings checkpoint/digits-inverted

The same command goes on after an interruption. Classes are divided by --split and --total_split,
or among the processes of `accelerate launch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from baselines.diffusion_inversion.config import InversionTrainingConfig
from baselines.embeddings.command import ClassTrainer, Command
from expansion.common.errors import run_command

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def make_trainer(
    pipeline: StableDiffusionPipeline, config: InversionTrainingConfig, folders: Mapping[str, str]
) -> ClassTrainer:
    """What trains a class; see `Command`."""
    from baselines.diffusion_inversion.trainer import InversionTrainer

    return InversionTrainer(pipeline, config)


COMMAND = Command(InversionTrainingConfig, make_trainer, __doc__)
main, parse = COMMAND.main, COMMAND.parse

if __name__ == "__main__":
    run_command(main)
