"""Write the prompts of a dataset's classes, for expand.py's `--prompts_file`.

    python -m dreamda.prompts -d digits --output prompts/digits.json
    python -m dreamda.prompts -d digits --output prompts/digits.json --model path/to/language-model

Without a model, prompts are combinations from the word lists of `configs/dreamda/prompts.yaml`.
With one, the model is asked for descriptions of random scenes of each class (paper, footnote 1).
"""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamda.prompts_config import PromptsConfig
from expansion.common.config import CONFIG_DIR, load_yaml
from expansion.common.devices import usable_device
from expansion.common.errors import InputError, require, run_command
from expansion.common.files import write_atomic
from expansion.common.option_parser import OptionParser
from expansion.common.seeding import stable_seed
from expansion.data.datasets import ImageDataset, load_dataset
from expansion.data.prompts import class_prompt, names_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Ask = Callable[[str, int], str]  # (request, seed) -> the model's answer

WORD_LISTS = {"scene": "scenes", "viewpoint": "viewpoints", "light": "lights", "medium": "media"}
PLACEHOLDER = re.compile(r"\{(\w*)\}")
EMPHASIS = re.compile(r"\*\*|__|`")
MARKER = re.compile(r"\(?\d+\s*[.):](?:\s+|(?=[^\d\s]))|[-*+\u2022]\s+")  # "12.", "12)", "12:", "-"
QUOTED = re.compile(r'["\u201c](?P<inside>[^"\u201c\u201d]+)["\u201d]')
WORD_COUNT = re.compile(r"\s*[(\[]\s*\d+ words?\s*[)\]]\.?$")
NUM_SHOWN = 5  # classes that a warning lists


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the JSON file of prompts; `arguments` defaults to the process's own."""
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = check_output(config)
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    combined = combine_words(config, dataset)
    if config.model is None:
        prompts = {name: texts[: config.num_prompts] for name, texts in combined.items()}
        dropped: Counter[str] = Counter()
        added: Mapping[str, int] = {}
    else:
        answers, dropped = ask_all(config, dataset)
        prompts, added = top_up(answers, combined, config.num_prompts)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, json.dumps(prompts, ensure_ascii=False, indent=1) + "\n")
    _log_summary(config, prompts, dropped, added)


def parse(arguments: Sequence[str] | None) -> PromptsConfig:
    """Command line over `--config` files over `configs/dreamda/prompts.yaml`."""
    parser = OptionParser(prog="python -m dreamda.prompts", description=__doc__)
    given = parser.read(arguments, {"prompts": PromptsConfig})
    texts = load_yaml(CONFIG_DIR / "dreamda" / "prompts.yaml")
    (config,) = given.over(texts).compose(PromptsConfig)
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
        name: word_list_prompts(config, name, class_prompt(template, prompt_name))
        for name, prompt_name in zip(dataset.class_names, dataset.prompt_names, strict=True)
    }


def word_list_prompts(config: PromptsConfig, class_name: str, subject: str) -> list[str]:
    """Combine words to `num_prompts` distinct prompts or more, in random order.

    Args:
        config: Word lists, pattern, seed and number of prompts.
        class_name: Decides the order, together with the seed.
        subject: The dataset's own prompt of the class; its final period is left out.

    Raises:
        InputError: The word lists cannot give that many.
    """
    used = set(PLACEHOLDER.findall(config.pattern))
    require("subject" in used, f"pattern {config.pattern!r}: write {{subject}} in it")
    lists = {key: getattr(config, name) for key, name in WORD_LISTS.items() if key in used}
    total = math.prod(map(len, lists.values()))
    draw = random.Random(stable_seed("word lists", config.seed, class_name))
    texts: dict[str, str] = {}
    # Twice as many as asked for: equal combinations drop out, and `top_up` needs a choice.
    for number in draw.sample(range(total), min(total, 2 * config.num_prompts)):
        values = {**dict.fromkeys(WORD_LISTS, ""), "subject": subject.strip().removesuffix(".")}
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


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model that is called as `Ask`: equal seeds give equal answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PromptsConfig

    def __call__(self, request: str, seed: int) -> str:
        import torch

        inputs = self._inputs(request).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        limit = self._limit(length)
        gpus = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=gpus), torch.inference_mode():
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=limit,
                pad_token_id=self._pad_token_id(),
            )
        tokens = output[0, length:]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        # An answer that reached the limit ends somewhere within a line, which is left out.
        return text if len(tokens) < limit else text.rpartition("\n")[0]

    def _inputs(self, request: str):
        """Token ids (1, L) and attention mask of the request, in the chat's form if it has one."""
        if not self.tokenizer.chat_template:
            return self.tokenizer(request, return_tensors="pt")
        messages = [{"role": "user", "content": request}]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    def _limit(self, length: int) -> int:
        """The most tokens that an answer to a request of `length` tokens may have."""
        text_config = self.model.config.get_text_config()
        window = getattr(text_config, "max_position_embeddings", None) or math.inf
        require(
            length < window,
            f"the request has {length} tokens, the model {self.config.model} reads {window}; "
            "give a shorter --request",
        )
        return int(min(self.config.max_new_tokens, window - length))

    def _pad_token_id(self) -> int | None:
        if self.tokenizer.pad_token_id is None:
            return self.tokenizer.eos_token_id
        return self.tokenizer.pad_token_id


def load_model(config: PromptsConfig) -> LanguageModel:
    """Load the language model `config.model`.

    Only safetensors weights are read, and no code that lies in the checkpoint is run.

    Raises:
        InputError: There is no such model, or it cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from expansion.common.hub import only_cached, why_not_loaded

    name = str(config.model)
    is_path = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
    require(
        not is_path or Path(name).is_dir(),
        f"model folder {name} does not exist; give a folder or a hub id such as owner/name",
    )
    device = usable_device(config.device)
    automatic = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, automatic if config.dtype == "auto" else config.dtype)
    try:
        source = {"trust_remote_code": False, "local_files_only": only_cached(name)}
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, **source
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = why_not_loaded(name, error).rstrip(".")
        raise InputError(
            f"cannot load the language model {name}: {reason}; give --model the folder or "
            "hub id of a causal language model with safetensors weights"
        ) from error
    return LanguageModel(model.to(device).eval(), tokenizer, config)


def _log_summary(
    config: PromptsConfig,
    prompts: Mapping[str, Sequence[str]],
    dropped: Counter[str],
    added: Mapping[str, int],
) -> None:
    if added:
        shown = ", ".join(f"{name} {count}" for name, count in list(added.items())[:NUM_SHOWN])
        logger.warning(
            f"{config.model} gave too few prompts for {len(added)} of {len(prompts)} classes; "
            f"added from the word lists: {shown}{', ...' if len(added) > NUM_SHOWN else ''}"
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    logger.info(
        f"{config.output}: {config.num_prompts} prompts for each of {len(prompts)} classes, by "
        f"{config.model or 'word lists'}, seed {config.seed}; dropped: {reasons or 'none'}; "
        f"topped up from the word lists: {sum(added.values())}"
    )


if __name__ == "__main__":
    run_command(main)
