"""Prompts: a template with the class name in it, or a file of candidates to draw from.

A prompts file is JSON, `{class: [prompts]}`; or JSON lines, `{"file_name": ..., "text": ...}`, with
one or more lines per real image; or a language model's numbered lists one below the other, a class
each, without headings: "1. A regal Abyssinian cat ...", of which DreamDA published one. It is read
and checked as a whole before any weights load.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expansion.common.config import CONFIG_DIR, config_hash, load_yaml
from expansion.common.errors import JSON_ERRORS, InputError, is_text, require
from expansion.common.seeding import stable_seed
from expansion.common.texts import NameIndex, parse_json, stripped

logger = logging.getLogger(__name__)

PROMPT_PER = ("image", "variant")
NUM_SHOWN = 5  # names that an error lists before it only counts
NUMBERED = re.compile(r"\s*(?P<number>\d+)[.)]\s+(?P<text>\S.*)")  # a line of a numbered list
ENOUGH = 0.75  # share of a list's prompts that name the class that the list is of


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run.

    Attributes:
        by_label: Candidates of each class, in label order.
        by_file: file_name of a real image -> its own candidates, which replace those of its class.
        per: "image": all variants of a real image have the candidate that is drawn for it;
            "variant": they take the candidates in turn, beginning with the drawn one.
        seed: Run seed, which decides the draw.
    """

    by_label: Sequence[Sequence[str]]
    by_file: Mapping[str, Sequence[str]] = field(default_factory=dict)
    per: str = "image"
    seed: int = 0

    def candidates(self, file_name: str, label: int) -> Sequence[str]:
        """All prompts that the variants of a real image may have.

        Args:
            file_name: Of the real image.
            label: Of the real image.
        """
        return self.by_file[file_name] if self.by_file else self.by_label[label]

    def prompt_of(self, file_name: str, label: int, variant: int) -> str:
        """The prompt of a variant; it does not depend on other images or the number of variants.

        Args:
            file_name: Of the real image.
            label: Of the real image.
            variant: Number of the variant, from 0.
        """
        texts = self.candidates(file_name, label)
        step = variant if self.per == "variant" else 0
        return texts[(stable_seed("prompt", self.seed, file_name) + step) % len(texts)]

    def fingerprint(self) -> str:
        """Hash of everything that decides the prompts, except the run seed."""
        if not self.by_file and all(len(texts) == 1 for texts in self.by_label):
            return config_hash([text for (text,) in self.by_label])  # nothing to draw from
        return config_hash([self.by_label, self.by_file, self.per])


@dataclass(frozen=True)
class PromptScope:
    """The classes and images that a prompts file may name, and the images that it must name.

    Attributes:
        class_names: Names of the classes, in label order.
        prompt_names: Names of the classes in prompts, in label order.
        labels: file_name -> label, for all training images.
        wanted: file_names of the real images of this run, which must have prompts.
    """

    class_names: Sequence[str]
    prompt_names: Sequence[str]
    labels: Mapping[str, int]
    wanted: Collection[str]


def class_prompt(template: str, class_name: str) -> str:
    """Replace {} in `template` by the class name; braces in the name are kept as they are.

    Raises:
        InputError: The template does not hold {} exactly once, or is no UTF-8 text.
    """
    require(
        template.count("{}") == 1,
        f"prompt template {template!r}: write {{}} once, where the class name goes",
    )
    require(is_text(template), f"prompt template {template!r} is no UTF-8 text")
    return template.replace("{}", class_name)


def template_prompts(template: str, prompt_names: Sequence[str]) -> Prompts:
    """The prompts that a template gives, one for each class.

    Args:
        template: Text with {} in the place of the class name.
        prompt_names: Names of the classes in prompts, in label order.

    Raises:
        InputError: The template does not hold {} exactly once.
    """
    return Prompts(by_label=[(class_prompt(template, name),) for name in prompt_names])


def preset_prompts(name: str, prompt_name: str) -> list[str]:
    """The prompts of a class that a file of `configs/prompts` gives, in its order.

    Args:
        name: Of the file, which lists `patterns` with {class} in them.
        prompt_name: Takes the place of {class}.
    """
    patterns = load_yaml(CONFIG_DIR / "prompts" / f"{name}.yaml").values["patterns"]
    return [pattern.replace("{class}", prompt_name) for pattern in patterns]


def preset_names() -> list[str]:
    """The names of those that are prompts of images: a file may say `preset: false`."""
    paths = sorted((CONFIG_DIR / "prompts").glob("*.yaml"))
    return [path.stem for path in paths if load_yaml(path).values.get("preset", True)]


def read_prompts(path: str | Path, scope: PromptScope, per: str, seed: int) -> Prompts:
    """Read the candidates in a prompts file, whose forms are at the head of this module.

    The file may name a class by its class name or its prompt name, and an image by its file_name or
    by its path below the split folder. Prompts that do not name their class are logged.

    Args:
        path: The file.
        scope: Which classes and images it may and must name.
        per: As in `Prompts`.
        seed: As in `Prompts`.

    Raises:
        InputError: The file has faults; one message tells them all.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts file {path}: {error}") from error
    by_label: Sequence[Sequence[str]] = ()
    by_file: Mapping[str, Sequence[str]] = {}
    given: list[tuple[int, Sequence[str]]]
    if _is_json_lines(text):
        by_file = _read_lines(path, text, scope)
        given = [(scope.labels[name], texts) for name, texts in by_file.items()]
    elif NUMBERED.match(text.lstrip().partition("\n")[0]):
        by_label = _read_numbered(path, text, scope)
        given = list(enumerate(by_label))
    else:
        by_label = _read_classes(path, text, scope)
        given = list(enumerate(by_label))
    pairs = [(prompt, scope.prompt_names[label]) for label, texts in given for prompt in texts]
    _warn_if_unnamed(path, pairs)
    return Prompts(by_label, by_file, per, seed)


def names_class(prompt: str, prompt_name: str) -> bool:
    """Whether a word of the prompt begins with the class name: "two Cats" names "cat".

    "bobcat" does not name "cat". Case does not matter, and "_" and "-" are read as spaces.
    """
    return re.search(rf"(?<!\w){re.escape(_plain(prompt_name))}", _plain(prompt)) is not None


def overlong_warning(prompts: Iterable[str], tokenizer: Any) -> str | None:
    """A sentence on the prompts that are too long for the text encoder; None if all fit.

    Args:
        prompts: Texts to check.
        tokenizer: A transformers tokenizer; `model_max_length` is the number of tokens that the
            text encoder reads, including the start and end tokens.
    """
    texts = sorted(set(prompts))
    token_ids = tokenizer(texts, truncation=False, verbose=False).input_ids
    window = tokenizer.model_max_length
    count = sum(len(ids) > window for ids in token_ids)
    if not count:
        return None
    length, longest = max((len(ids), text) for ids, text in zip(token_ids, texts, strict=True))
    return (
        f"{count} of {len(texts)} prompts are longer than the {window} tokens that the text "
        f"encoder reads, their ends are ignored; the longest has {length}: {longest!r}"
    )


def _is_json_lines(text: str) -> bool:
    """Whether the first line is an object that has a file_name, or more lines behind it."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        row = json.loads(first)
    except JSON_ERRORS:
        return False
    return isinstance(row, dict) and ("file_name" in row or bool(rest.strip()))


def _read_classes(path: str | Path, text: str, scope: PromptScope) -> list[tuple[str, ...]]:
    """Read the candidates of each class, in label order, from {class: [prompts]}."""
    try:
        # Pairs instead of a dict, which would hide a class that is given twice.
        pairs = json.loads(text, object_pairs_hook=tuple)
    except JSON_ERRORS as error:
        place = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"prompts file {path}: invalid JSON{place} ({getattr(error, 'msg', error)}); expected "
            "{class: [prompts]}, or one object with file_name and text per line"
        ) from error
    require(
        isinstance(pairs, tuple),
        f"prompts file {path}: not an object; expected {{class: [prompts]}}",
    )
    # Match the names with the classes, and collect all faults for one message.
    labels = {name: label for label, name in enumerate(scope.prompt_names)}
    labels |= {name: label for label, name in enumerate(scope.class_names)}
    index = NameIndex(labels)
    by_label: dict[int, tuple[str, ...]] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for name, texts in pairs:
        label = labels.get(index.find(name))
        if label is None:
            problems["no such class"].append(repr(name))
        elif label in by_label:
            problems["class given twice"].append(repr(name))
        elif not isinstance(texts, list) or not all(map(_is_prompt, texts)):
            problems["no list, or an empty or non-string prompt in it, for class"].append(
                repr(name)
            )
            by_label[label] = ()
        elif texts:
            by_label[label] = tuple(map(stripped, texts))
    problems["no prompts for class"] = [
        repr(name) for label, name in enumerate(scope.class_names) if label not in by_label
    ]
    _raise_if_any(path, problems, "expected {class: [prompts]} with all classes of the dataset")
    return [by_label[label] for label in range(len(scope.class_names))]


def _read_lines(path: str | Path, text: str, scope: PromptScope) -> dict[str, list[str]]:
    """Read the candidates of each real image, by its file_name, from lines of {file_name, text}."""
    files = NameIndex(scope.labels)
    # Path below the split folder -> the images that have it; a line must mean exactly one.
    below: dict[str, list[str]] = defaultdict(list)
    for name in scope.labels:
        below[name.partition("/")[2] or name].append(name)
    short = NameIndex(below)
    # Match the lines with the images, and collect all faults for one message.
    by_file: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _object(line)
        if row is None:
            problems["invalid JSON in line"].append(str(number))
        elif not isinstance(row.get("file_name"), str):
            problems["no file_name in line"].append(str(number))
        elif not _is_prompt(row.get("text")):
            problems["empty or non-string text in line"].append(str(number))
        else:
            whole, part = files.find(row["file_name"]), short.find(row["file_name"])
            meant = [whole] if whole else below.get(part, [])
            if len(meant) == 1:
                by_file.setdefault(meant[0], []).append(stripped(row["text"]))
            else:
                kind = "name of several images" if meant else "no such training image"
                problems[kind].append(repr(row["file_name"]))
    problems["no line for the real image"] = [repr(n) for n in scope.wanted if n not in by_file]
    _raise_if_any(
        path, problems, 'expected {"file_name": ..., "text": ...} for each real image of the run'
    )
    return by_file


def _read_numbered(path: str | Path, text: str, scope: PromptScope) -> list[tuple[str, ...]]:
    """Read the candidates of each class, in label order, from numbered lists of one class each.

    A list begins where numbers begin anew. It is of the class that its prompts name; where they
    name two, as "american bulldog" and "bulldog", of the longer name.
    """
    # The lists: number of the first line, and prompts.
    lists: list[tuple[int, list[str]]] = []
    problems: dict[str, list[str]] = defaultdict(list)
    last = 0
    for number, line in enumerate(text.splitlines(), start=1):
        found = NUMBERED.fullmatch(line.rstrip())
        if found is None:
            problems["no '<number>. <prompt>' in line"] += [str(number)] if line.strip() else []
            continue
        if not lists or int(found["number"]) < max(last, 2):
            lists.append((number, []))
        lists[-1][1].append(stripped(found["text"]))
        last = int(found["number"])
    # Their classes.
    by_label: dict[int, tuple[str, ...]] = {}
    for first, texts in lists:
        label = _class_of_list(texts, scope.prompt_names)
        place = f"that from line {first}, {texts[0][:40]!r}"
        if label is None:
            problems["lists of no class"].append(place)
        elif label in by_label:
            problems["second lists of a class"].append(place)
        else:
            by_label[label] = tuple(texts)
    problems["no list for class"] = [
        repr(name) for label, name in enumerate(scope.class_names) if label not in by_label
    ]
    _raise_if_any(
        path, problems, "expected a numbered list for each class, whose prompts name the class"
    )
    return [by_label[label] for label in range(len(scope.class_names))]


def _class_of_list(texts: Sequence[str], prompt_names: Sequence[str]) -> int | None:
    """The class that most of the texts name; None if too few name one, or two equally."""
    counts = [sum(names_class(text, name) for text in texts) for name in prompt_names]
    ranks = sorted(
        ((count, len(name)), label)
        for label, (count, name) in enumerate(zip(counts, prompt_names, strict=True))
    )
    (best, label), others = ranks[-1], ranks[:-1]
    unclear = bool(others) and others[-1][0] == best
    return None if unclear or best[0] < ENOUGH * len(texts) else label


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object in a line; None if it holds something else."""
    try:
        row = parse_json(line)
    except JSON_ERRORS:
        return None
    return row if isinstance(row, dict) else None


def _is_prompt(text: object) -> bool:
    return isinstance(text, str) and bool(stripped(text)) and is_text(text)


def _raise_if_any(path: str | Path, problems: Mapping[str, Sequence[str]], remedy: str) -> None:
    listed = [f"{kind}: {_shortened(names)}" for kind, names in problems.items() if names]
    require(not listed, f"prompts file {path}: {'; '.join(listed)}; {remedy}")


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def _warn_if_unnamed(path: str | Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Log how many prompts do not name their class; `pairs` are (prompt, name of its class)."""
    unnamed = [(prompt, name) for prompt, name in pairs if not names_class(prompt, name)]
    if unnamed:
        prompt, name = unnamed[0]
        logger.warning(
            f"{path}: {len(unnamed)} of {len(pairs)} prompts do not name their class, "
            f"such as {prompt!r} of {name!r}"
        )


def _plain(text: str) -> str:
    return " ".join(re.sub("[_-]", " ", text).casefold().split())
