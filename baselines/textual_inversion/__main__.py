"""Textual inversion: learn one new word for each class of a dataset, for --method da_fusion.

    python -m baselines.textual_inversion -d digits --output_dir checkpoint/digits-words
    python expand.py -d digits --method da_fusion --embeddings checkpoint/digits-words

The same command goes on after an interruption. Classes are divided by --split and --total_split,
or among the processes of `accelerate launch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from baselines.embeddings.command import COMMON, ClassTrainer, run, with_dataset
from baselines.textual_inversion.config import TextualInversionConfig
from expansion.common.errors import run_command
from expansion.common.option_parser import OptionParser

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says; `arguments` defaults to the process's own."""
    config = parse(arguments)[0]

    def make(pipeline: StableDiffusionPipeline, folders: Mapping[str, str]) -> ClassTrainer:
        from baselines.textual_inversion.trainer import WordTrainer

        return WordTrainer(pipeline, config, folders)

    run(config, make)


def parse(arguments: Sequence[str] | None) -> tuple[TextualInversionConfig]:
    """Command line over YAML over the dataset's file over defaults."""
    parser = OptionParser(prog=TextualInversionConfig.command, description=__doc__, common=COMMON)
    given = parser.read(arguments, {"training": TextualInversionConfig})
    return tuple(with_dataset(given).compose(TextualInversionConfig))


if __name__ == "__main__":
    run_command(main)
