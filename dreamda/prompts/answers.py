"""Prompts from the answers of a language model, which is asked for lists of scenes of a class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from dreamda.prompts.config import PromptsConfig
from dreamda.prompts.word_lists import fill
from expansion.common.errors import require
from expansion.common.seeding import stable_seed
from expansion.data.datasets import ImageDataset
from expansion.data.prompts import names_class

Ask = Callable[[str, int], str]  # (request, seed) -> the model's answer

EMPHASIS = re.compile(r"\*\*|__|`")
MARKER = re.compile(r"\(?\d+\s*[.):](?:\s+|(?=[^\d\s]))|[-*+\u2022]\s+")  # "12.", "12)", "12:", "-"
QUOTED = re.compile(r'["\u201c](?P<inside>[^"\u201c\u201d]+)["\u201d]')
WORD_COUNT = re.compile(r"\s*[(\[]\s*\d+ words?\s*[)\]]\.?$")


def ask_all(
    config: PromptsConfig, dataset: ImageDataset
) -> tuple[dict[str, list[str]], Counter[str]]:
    """Load the language model and ask it for prompts of every class.

    Args:
        config: The model, the request and the number of prompts.
        dataset: Its classes.

    Returns:
        Prompts by class, and how many answers were dropped, by reason.

    Raises:
        InputError: The request or the model cannot be used.
    """
    from tqdm import tqdm

    from dreamda.prompts.language_model import load_model

    request_for(config, "", 1)
    ask = load_model(config)
    prompts: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    classes = list(zip(dataset.class_names, dataset.prompt_names, strict=True))
    for class_name, prompt_name in tqdm(classes, desc="prompts", unit="class", disable=None):
        prompts[class_name], faults = ask_for_prompts(ask, config, class_name, prompt_name)
        dropped += faults
    return prompts, dropped


def request_for(config: PromptsConfig, prompt_name: str, number: int) -> str:
    """The text that asks the model for `number` prompts of the class called `prompt_name`."""
    require("{class}" in config.request, f"request {config.request!r}: write {{class}} in it")
    values = {"class": prompt_name, "num": str(number), "min_words": str(config.min_words)}
    return fill(config.request, values, "request")


def ask_for_prompts(
    ask: Ask, config: PromptsConfig, class_name: str, prompt_name: str
) -> tuple[list[str], Counter[str]]:
    """Ask about one class until there are `num_prompts` prompts or `max_requests` were made.

    Args:
        ask: Gives the model's answer to a request and a seed.
        config: Number of prompts and requests, and the shortest prompt.
        class_name: Decides the seeds of the requests.
        prompt_name: Name of the class in prompts.

    Returns:
        At most `num_prompts` distinct prompts that name their class, and how many others the model
        gave, by the reason for which they were dropped.
    """
    texts: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for number in range(config.max_requests):
        missing = config.num_prompts - len(texts)
        if missing <= 0:
            break
        request = request_for(config, prompt_name, missing)
        answer = ask(request, stable_seed("request", config.seed, class_name, number))
        for text in parse_answer(answer, config.min_words):
            if len(text.split()) < config.min_words:
                dropped["too short"] += 1
            elif not names_class(text, prompt_name):
                dropped["without the class name"] += 1
            elif text.casefold() in texts:
                dropped["repeated"] += 1
            else:
                texts[text.casefold()] = text
    return list(texts.values())[: config.num_prompts], dropped


def parse_answer(answer: str, min_words: int) -> list[str]:
    """The prompts in a model's answer, one for each line of a numbered or bulleted list.

    An answer without list markers gives a prompt for each line of at least `min_words` words,
    except lines that end in a colon, which announce a list. The thoughts of a reasoning model, up
    to "</think>", are left out.
    """
    lines = [EMPHASIS.sub("", line) for line in answer.rpartition("</think>")[2].splitlines()]
    lines = [" ".join(line.split()) for line in lines]
    marked = [line for line in lines if MARKER.match(line)]
    plain = [line for line in lines if not line.endswith(":") and len(line.split()) >= min_words]
    items = [
        _without_wrapping(MARKER.sub("", line, count=1), min_words) for line in marked or plain
    ]
    return [item for item in items if item]


def _without_wrapping(text: str, min_words: int) -> str:
    """Remove quotes around `text`, and a remark behind it such as its number of words."""
    text = WORD_COUNT.sub("", text)
    quoted = QUOTED.match(text)
    if quoted and (quoted.end() == len(text) or len(quoted["inside"].split()) >= min_words):
        return quoted["inside"].strip()
    for opening, closing in ("''", "\u2018\u2019", "**", "__"):
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            return text[1:-1].strip()
    return text
