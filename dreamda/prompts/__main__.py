"""Write the prompts of a dataset's classes, for expand.py's `--prompts_file`.

    python -m dreamda.prompts -d digits --output prompts/digits.json
    python -m dreamda.prompts -d digits --output prompts/digits.json --model path/to/language-model
    python -m dreamda.prompts -d digits --output prompts/digits.json --preset bot
    python -m dreamda.prompts -d digits --output prompts/digits.json --preset lecf \\
        --model mrm8488/t5-base-finetuned-common_gen

Without a model, prompts are combinations from the word lists of `configs/dreamda/prompts.yaml`.
With one, the model is asked for descriptions of random scenes of each class (paper, footnote 1).
A preset is a list that another method uses, `configs/prompts/<preset>.yaml`; with `--preset lecf` a
model may turn each class's name into sentences, as LECF does.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreamda.prompts.answers import ask_all
from dreamda.prompts.config import PromptsConfig
from dreamda.prompts.sentences import sentences_of
from dreamda.prompts.word_lists import combine_words, top_up
from expansion.common.config import CONFIG_DIR, load_yaml
from expansion.common.errors import require, run_command
from expansion.common.files import write_atomic
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import ImageDataset, load_dataset
from expansion.data.prompts import preset_prompts

logger = logging.getLogger(__name__)

NUM_SHOWN = 5  # classes that a warning lists


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the JSON file of prompts; `arguments` defaults to the process's own."""
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = check_output(config)
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    if config.preset is None:
        prompts, remark = _own_prompts(config, dataset)
    elif config.model is None:
        names = zip(dataset.class_names, dataset.prompt_names, strict=True)
        prompts = {name: preset_prompts(config.preset, called) for name, called in names}
        remark = f"of preset {config.preset}"
    else:
        prompts, remark = sentences_of(config, dataset)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, json.dumps(prompts, ensure_ascii=False, indent=1) + "\n")
    numbers = sorted({len(texts) for texts in prompts.values()})
    number = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    logger.info(f"{output}: {number} prompts for each of {len(prompts)} classes, {remark}")


def parse(arguments: Sequence[str] | None) -> PromptsConfig:
    """Command line over `--config` files over a file of `configs/dreamda`.

    That file is `prompts.yaml`, with word lists and the model's request; `lecf.yaml` for a model
    that makes sentences; and none for a preset alone.
    """
    parser = OptionParser(prog="python -m dreamda.prompts", description=__doc__)
    given = parser.read(arguments, {"prompts": PromptsConfig})
    preset, model = given.peek("preset"), given.peek("model")
    require(
        preset is None or model is not None or given.peek("num_prompts") is None,
        f"--num_prompts: all prompts of --preset {preset} are written; leave it out",
    )
    name = "prompts" if preset is None else "lecf" if model is not None else None
    layers = given.over(load_yaml(CONFIG_DIR / "dreamda" / f"{name}.yaml")) if name else given
    (config,) = layers.compose(PromptsConfig)
    return config


def check_output(config: PromptsConfig) -> Path:
    """The output file of `config`.

    Raises:
        InputError: None is given, or one exists and must not be replaced.
    """
    require(bool(config.output), "no output file; give --output, such as prompts/NAME.json")
    output = Path(config.output)
    require(not output.is_dir(), f"--output {output} is a folder; give the name of a file in it")
    require(
        config.overwrite or not output.exists(),
        f"{output} exists; choose another --output, or replace it with --overwrite",
    )
    return output


def _own_prompts(config: PromptsConfig, dataset: ImageDataset) -> tuple[dict[str, list[str]], str]:
    """Prompts by class from word lists or a causal model, and where they are from."""
    combined = combine_words(config, dataset)
    dropped: Counter[str] = Counter()
    added: Mapping[str, int] = {}
    if config.model is None:
        prompts = {name: texts[: config.num_prompts] for name, texts in combined.items()}
    else:
        answers, dropped = ask_all(config, dataset)
        prompts, added = top_up(answers, combined, config.num_prompts)
    if added:
        shown = ", ".join(f"{name} {count}" for name, count in list(added.items())[:NUM_SHOWN])
        logger.warning(
            f"{config.model} gave too few prompts for {len(added)} of {len(prompts)} classes; "
            f"added from the word lists: {shown}{', ...' if len(added) > NUM_SHOWN else ''}"
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return prompts, (
        f"by {config.model or 'word lists'}, seed {config.seed}; dropped: {reasons or 'none'}; "
        f"topped up from the word lists: {sum(added.values())}"
    )


if __name__ == "__main__":
    run_command(main)
