"""Writes the card (README.md) of a folder of real and generated images, in Hugging Face's form."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from expansion.common.config import YAML_ERRORS, load_yaml
from expansion.common.errors import JSON_ERRORS, one_line
from expansion.common.files import to_yaml, write_atomic
from expansion.export.merging import Merge

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "1M<n<10M"
FRONT = re.compile(r"\A---\n(.*?)\n---\s*\n", re.DOTALL)
LICENCE_LINE = re.compile(r"^\W*licen[cs]e\W+(\S.*)$", re.IGNORECASE | re.MULTILINE)
SCRIPT_FOLDER = re.compile(r"\S*/(?=\w+\.py\b)")  # folder of a script, which concerns nobody else
NOT_SAID = "not said here; see the model's card"


class Model(NamedTuple):
    """A checkpoint: its name, the licence that its own files state, and its fingerprint."""

    name: str
    licence: str
    fingerprint: str


def write_card(merge: Merge, target: Path, set_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write `README.md`.

    Args:
        merge: The content of the folder.
        target: The folder.
        set_dir: The expanded set, whose `expansion.yaml` says how it was made.
        facts: Facts of the set, which name its model.
    """
    path = set_dir / "expansion.yaml"
    made = load_yaml(path).values if path.is_file() else {}
    model = model_of(set_dir, facts, made, merge)
    text = "\n".join([_header(merge), _overview(merge), _making(merge, model, made), _use(target)])
    write_atomic(target / "README.md", text)


def size_category(count: int) -> str:
    """Hugging Face's name for a size of this many images."""
    return next((name for limit, name in SIZES if count < limit), LARGEST)


def _header(merge: Merge) -> str:
    total = sum(len(list(part.records)) for part in merge.parts.values())
    values = {
        "pretty_name": f"{merge.title}, with generated images",
        "license": "unknown",
        "task_categories": ["image-classification"],
        "size_categories": [size_category(total)],
        "tags": ["synthetic", "diffusion", "data-augmentation"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"{s}/**"} for s in merge.parts],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _overview(merge: Merge) -> str:
    rows = []
    for split, part in merge.parts.items():
        rows.append([split, str(len(part.real)), str(len(part.generated))])
    classes = []
    for label, name in enumerate(merge.class_names):
        counts = []
        for split, part in merge.parts.items():
            for generated in (False, True)[: 2 if part.generated else 1]:
                counts.append(str(merge.counts[split][name, generated]))
        classes.append([str(label), _shown(name), _shown(merge.folders[name]), *counts])
    columns = []
    for split, part in merge.parts.items():
        columns += [f"{split}, real"] + ([f"{split}, generated"] if part.generated else [])
    num_generated = len(merge.generated)
    return (
        f"# {_shown(merge.title)}, with generated images\n\n"
        f"Images of {len(merge.class_names)} classes for image classification. {num_generated} of "
        "them are **synthetic**: a diffusion model made each from one real training image.\n\n"
        f"{_table(['split', 'real images', 'generated images'], rows)}\n"
        "In `metadata.jsonl`, `synthetic` says which images are generated, and `source` from which "
        "real image; its class is the label, which nobody has checked on the generated image. A "
        "generated PNG also says so in its own text fields (`synthetic`, method, source, seed, "
        "prompt, model). Images for testing are real, all of them.\n\n"
        "The real images have the licence of the dataset that they come from, which is not known "
        "here: look it up before this folder is passed on.\n\n"
        f"## Classes\n\n{_table(['label', 'class', 'folder', *columns], classes)}"
    )


def _making(merge: Merge, model: Model, made: Mapping[str, Any]) -> str:
    rows = [merge.rows[record.file_name] for record in merge.generated]
    hashes = _distinct(row.get("config") for row in rows)
    method = _distinct(row.get("method") for row in rows) or str(made.get("method", "not said"))
    keys = ("method", "settings", "resolution", "dtype", "seed")
    settings = {key: made[key] for key in keys if key in made}
    made_with = made.get("made_with") if isinstance(made.get("made_with"), dict) else {}
    lines = [
        f"- Model: {_shown(model.name)} ({_code(model.fingerprint)})",
        f"- Licence of the model: {_shown(model.licence)}",
        f"- Method: {_shown(method)}",
        f"- Settings, by their hash in every row of the set's manifest: {_code(hashes)}",
    ]
    if made_with.get("command"):
        command = SCRIPT_FOLDER.sub("", str(made_with["command"]))
        lines.append(f"- Begun by: {_code(command)}")
    if made_with.get("commit"):
        lines.append(f"- Version of the code: {_shown(str(made_with['commit']))}")
    block = f"\n```yaml\n{to_yaml(settings)}```\n" if settings else ""
    return "## How the generated images were made\n\n" + "\n".join(lines) + "\n" + block


def _use(target: Path) -> str:
    name = json.dumps(target.name, ensure_ascii=False)
    return (
        "## Use\n\nBoth number the classes as the table does:\n\n```python\n"
        f"datasets.load_dataset({name})  # or load_dataset('imagefolder', data_dir={name})\n"
        f"torchvision.datasets.ImageFolder({name} + '/train')\n```\n"
    )


def model_of(
    set_dir: Path, facts: Mapping[str, Any], made: Mapping[str, Any], merge: Merge
) -> Model:
    """The checkpoint of a set, with its licence if its own files state one.

    Args:
        set_dir: The expanded set.
        facts: Facts of the set, which name its model.
        made: Content of the set's `expansion.yaml`.
        merge: The images of the folder, whose rows hold the model's fingerprint as well.
    """
    rows = (merge.rows[record.file_name] for record in merge.generated)
    fingerprint = str(made.get("model") or _distinct(row.get("model") for row in rows))
    name = facts.get("model")
    if not isinstance(name, str):
        return Model(fingerprint.partition("@")[0], NOT_SAID, fingerprint)
    folder = os.path.join(set_dir, name)
    if os.path.isdir(folder):
        return Model(Path(os.path.abspath(folder)).name, stated_licence(Path(folder)), fingerprint)
    cached = _cached_card(name)
    stated = stated_licence(cached.parent) if cached else NOT_SAID
    return Model(f"https://huggingface.co/{name}", stated, fingerprint)


def stated_licence(folder: Path) -> str:
    """The licence that a checkpoint's model_index.json or README states; else NOT_SAID."""
    index, card = folder / "model_index.json", folder / "README.md"
    try:
        values = json.loads(index.read_bytes()) if index.is_file() else {}
    except (OSError, *JSON_ERRORS):
        values = {}
    named = values.get("license") if isinstance(values, dict) else None
    if isinstance(named, str) and named:
        return named
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return NOT_SAID
    front = FRONT.match(text)
    if front:
        try:
            values = yaml.safe_load(front[1])
        except YAML_ERRORS:
            values = None
        named = values.get("license") if isinstance(values, dict) else None
        if named:
            return ", ".join(map(str, named)) if isinstance(named, list) else str(named)
    line = LICENCE_LINE.search(text[front.end() if front else 0 :])
    return f'"{line[1].strip()}"' if line else NOT_SAID


def _cached_card(name: str) -> Path | None:
    """The README of a model in the hub's cache, without asking the network; None without one."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "README.md")
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values if value is not None}))


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _shown(text: str) -> str:
    """Escape a text, so that Markdown shows it unchanged and in one line."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", one_line(text)).replace("<", "&lt;")


def _code(text: str) -> str:
    """Write a text as code within a line of Markdown."""
    return f"`{one_line(text).replace('`', chr(39))}`"
