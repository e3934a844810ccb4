"""Prompts from word lists: every combination of words at most once, in random order."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence

from dreamda.prompts.config import PromptsConfig
from expansion.common.errors import require
from expansion.common.seeding import stable_seed
from expansion.data.datasets import ImageDataset
from expansion.data.prompts import class_prompt

WORD_LISTS = {"scene": "scenes", "viewpoint": "viewpoints", "light": "lights", "medium": "media"}
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def fill(template: str, values: Mapping[str, str], name: str) -> str:
    """Replace each {key} in `template`; braces in the values are kept as they are.

    Args:
        template: Text with placeholders.
        values: Text for each key.
        name: Option that the template comes from, for the error.

    Raises:
        InputError: The template has a placeholder that `values` lacks.
    """
    unknown = [key for key in PLACEHOLDER.findall(template) if key not in values]
    known = " ".join(f"{{{key}}}" for key in values)
    require(not unknown, f"{name}: unknown placeholder {{{''.join(unknown[:1])}}}; known: {known}")
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


def combine_words(config: PromptsConfig, dataset: ImageDataset) -> dict[str, list[str]]:
    """`word_list_prompts` of every class of `dataset`, by class; `config` has the word lists."""
    template = dataset.config.prompt_template
    return {
        name: word_list_prompts(config, name, prompt_name, class_prompt(template, prompt_name))
        for name, prompt_name in zip(dataset.class_names, dataset.prompt_names, strict=True)
    }


def word_list_prompts(
    config: PromptsConfig, class_name: str, prompt_name: str, subject: str
) -> list[str]:
    """Combine words to `num_prompts` distinct prompts or more, in random order.

    Args:
        config: Word lists, pattern, seed and number of prompts.
        class_name: Decides the order, together with the seed.
        prompt_name: Name of the class in prompts, for {class}.
        subject: The dataset's own prompt of the class; its final period is left out.

    Raises:
        InputError: The word lists cannot give that many.
    """
    used = set(PLACEHOLDER.findall(config.pattern))
    require(
        bool(used & {"subject", "class"}),
        f"pattern {config.pattern!r}: write {{subject}} or {{class}} in it",
    )
    lists = {key: getattr(config, name) for key, name in WORD_LISTS.items() if key in used}
    total = math.prod(map(len, lists.values()))
    draw = random.Random(stable_seed("word lists", config.seed, class_name))
    texts: dict[str, str] = {}
    # Twice as many as asked for: equal combinations drop out, and `top_up` needs a choice.
    for number in draw.sample(range(total), min(total, 2 * config.num_prompts)):
        values = {"subject": subject.strip().removesuffix("."), "class": prompt_name}
        values |= dict.fromkeys(WORD_LISTS, "")
        for key, words in lists.items():
            number, place = divmod(number, len(words))
            values[key] = words[place]
        text = fill(config.pattern, values, "pattern")
        texts.setdefault(text.casefold(), text)
    require(
        len(texts) >= config.num_prompts,
        f"num_prompts {config.num_prompts}: pattern and word lists give only {len(texts)} "
        f"different prompts; add to {', '.join(WORD_LISTS.values())}, or ask for fewer",
    )
    return list(texts.values())


def top_up(
    answers: Mapping[str, Sequence[str]], combined: Mapping[str, Sequence[str]], number: int
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Fill each class up to `number` prompts with combinations of words.

    Args:
        answers: The model's prompts by class.
        combined: Prompts from the word lists by class.
        number: Prompts per class.

    Returns:
        Prompts by class, and how many were added to each class that had too few.
    """
    prompts: dict[str, list[str]] = {}
    for name, texts in answers.items():
        taken = {text.casefold() for text in texts}
        others = [text for text in combined[name] if text.casefold() not in taken]
        prompts[name] = [*texts, *others[: number - len(texts)]]
    added = {name: len(prompts[name]) - len(texts) for name, texts in answers.items()}
    return prompts, {name: count for name, count in added.items() if count}
