"""LECF's language enhancement (arXiv 2210.07574): a class's name becomes many sentences.

A model that was trained to make a sentence of keywords is given the name alone, again and again.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence

from dreamda.prompts.config import PromptsConfig
from expansion.common.errors import require, shown
from expansion.common.seeding import stable_seed
from expansion.data.datasets import ImageDataset
from expansion.data.prompts import names_class

logger = logging.getLogger(__name__)

PREFIX = "a photo of "  # what LECF's generation puts before every sentence
SPARE = 1.25  # sampled for each prompt that is wanted: 250 for 200, as LECF does

Sample = Callable[[str, int, int], Sequence[str]]  # (keyword, number, seed) -> sentences


def sentences_of(config: PromptsConfig, dataset: ImageDataset) -> tuple[dict[str, list[str]], str]:
    """Load the keyword model and sample sentences of every class.

    Args:
        config: The model, its sampling and the number of prompts.
        dataset: Its classes.

    Returns:
        Prompts by class, and what came of the sampling, in words.

    Raises:
        InputError: The model cannot be used, or gives nothing for a class.
    """
    from tqdm import tqdm

    from dreamda.prompts.language_model import load_keyword_model

    sample = load_keyword_model(config)
    prompts: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    unnamed = 0
    classes = list(zip(dataset.class_names, dataset.prompt_names, strict=True))
    for class_name, prompt_name in tqdm(classes, desc="prompts", unit="class", disable=None):
        prompts[class_name], faults = class_sentences(sample, config, class_name, prompt_name)
        dropped += faults
        unnamed += sum(not names_class(text, prompt_name) for text in prompts[class_name])
    few = [name for name, texts in prompts.items() if len(texts) < config.num_prompts]
    if few:
        logger.warning(
            f"{config.model} gave fewer than {config.num_prompts} different sentences for "
            f"{len(few)} of {len(prompts)} classes: "
            f"{shown(f'{name} {len(prompts[name])}' for name in few)}"
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return prompts, (
        f"by {config.model}, seed {config.seed}; dropped: {reasons or 'none'}; kept without the "
        f"class name: {unnamed} of {sum(map(len, prompts.values()))}"
    )


def class_sentences(
    sample: Sample, config: PromptsConfig, class_name: str, prompt_name: str
) -> tuple[list[str], Counter[str]]:
    """Sample until there are `num_prompts` different sentences, or `max_requests` times.

    LECF's code samples once, and ends in an error if that gives too few. Sentences that do not name
    the class are kept, as there.

    Args:
        sample: Gives sentences with a keyword; "" stands for one that did not come to its end.
        config: Numbers of prompts and requests.
        class_name: Decides the seeds.
        prompt_name: The keyword.

    Returns:
        At most `num_prompts` prompts, and how many sentences were dropped, by the reason.

    Raises:
        InputError: There is no sentence at all.
    """
    texts: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    number = math.ceil(SPARE * config.num_prompts)
    for request in range(config.max_requests):
        if len(texts) >= config.num_prompts:
            break
        seed = stable_seed("sentences", config.seed, class_name, request)
        for sentence in sample(prompt_name, number, seed):
            text = " ".join(sentence.split())
            if not text:
                dropped["empty or cut off"] += 1
            elif text.casefold() in texts:
                dropped["repeated"] += 1
            else:
                texts[text.casefold()] = text
    require(
        bool(texts),
        f"{config.model} gave no whole sentence for class {class_name}; give another --model, or "
        "more --max_new_tokens",
    )
    kept = list(texts.values())[: config.num_prompts]
    return [PREFIX + text for text in kept], dropped
