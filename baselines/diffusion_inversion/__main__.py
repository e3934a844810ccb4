"""Diffusion Inversion: learn an embedding of each real image, for its --method.

    python -m baselines.diffusion_inversion -d digits --output_dir checkpoint/digits-inverted
    python expand.py -d digits --method diffusion_inversion --embeddings checkpoint/digits-inverted

The same command goes on after an interruption. Classes are divided by --split and --total_split,
or among the processes of `accelerate launch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from baselines.diffusion_inversion.config import InversionTrainingConfig
from baselines.embeddings.command import COMMON, ClassTrainer, run, with_dataset
from expansion.common.errors import run_command
from expansion.common.option_parser import OptionParser

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says; `arguments` defaults to the process's own."""
    config = parse(arguments)[0]

    def make(pipeline: StableDiffusionPipeline, folders: Mapping[str, str]) -> ClassTrainer:
        from baselines.diffusion_inversion.trainer import InversionTrainer

        return InversionTrainer(pipeline, config)

    run(config, make)


def parse(arguments: Sequence[str] | None) -> tuple[InversionTrainingConfig]:
    """Command line over YAML over the dataset's file over defaults."""
    parser = OptionParser(prog=InversionTrainingConfig.command, description=__doc__, common=COMMON)
    given = parser.read(arguments, {"training": InversionTrainingConfig})
    return tuple(with_dataset(given).compose(InversionTrainingConfig))


if __name__ == "__main__":
    run_command(main)
