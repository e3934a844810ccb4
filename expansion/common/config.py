"""One schema for YAML files and command lines: frozen dataclasses.

A field is declared once with `option(default, help)`. From it come the YAML key, the long option of
the same name, its help text and the type check. `Layers` are the sources of a command, of which
later ones win; `compose` merges them into several dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import importlib
import json
import logging
import math
import os
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from expansion.common.errors import InputError, brief, require, suggestion

# What PyYAML raises for a file that is no YAML, for an impossible date or number, for a tag that
# does not fit its value, and for lists within lists a thousand deep.
YAML_ERRORS = (
    yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError,
    RecursionError,
)  # fmt: skip

logger = logging.getLogger(__name__)

LARGEST_INT = 2**63 - 1
PROJECT_ROOT = Path(__file__).resolve().parents[2]
CONFIG_DIR = PROJECT_ROOT / "configs"


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    words: Sequence[str] = (),
    flags: Sequence[str] = (),
    decides: bool = True,
    added_later: bool = False,
) -> Any:
    """Declare a dataclass field that is also a YAML key and a command-line option.

    Args:
        default: Value when neither YAML nor command line gives one.
        help: What it is, with unit and range; shown by `--help`.
        choices: The allowed strings, if only some are.
        words: Strings that a number may also be, such as "auto".
        flags: Further spellings, such as `-d`.
        decides: Whether the value decides the result. Another value of an option that does not
            (speed, memory, what is logged) lets a begun folder go on.
        added_later: Whether folders that were begun before there was this option go on at its
            default, which then is not part of what identifies a folder.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "words": tuple(words),
        "flags": tuple(flags),
        "decides": decides,
        "added_later": added_later,
    }
    return dataclasses.field(default=default, metadata=metadata)


def refuse_idle(config: Any, names: Collection[str], reason: str) -> None:
    """Raise InputError for settings that other settings leave without effect, unless at default.

    Args:
        config: An instance of a dataclass of options.
        names: The idle settings.
        reason: Why they are, to be read after name and value, such as "is for the solver tcd".
    """
    for name in names:
        value = getattr(config, name)
        require(value == getattr(type(config), name), f"{name} {value} {reason}; leave it out")


@dataclasses.dataclass(frozen=True)
class Source:
    """Values with the place they come from, so that an error can name it."""

    values: Mapping[str, Any]
    name: str


@dataclasses.dataclass(frozen=True)
class Layers:
    """Settings from several sources in rising order: what a later source says wins."""

    sources: tuple[Source, ...]

    def peek(self, key: str, default: Any = None) -> Any:
        """The value of `key` that counts, as it is written: no schema has checked it yet."""
        found = [source.values[key] for source in self.sources if key in source.values]
        return found[-1] if found else default

    def over(self, *sources: Source) -> Layers:
        """These layers with `sources` beneath them."""
        return Layers((*sources, *self.sources))

    def compose(self, *config_classes: type) -> list[Any]:
        """One config per class; see the function `compose`."""
        return compose(config_classes, self.sources)


def load_yaml(path: str | Path) -> Source:
    """Read a YAML mapping. Raises InputError when the file is missing or is no mapping."""
    path = home_expanded(str(path))
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the config {path}: {error}") from error
    except YAML_ERRORS as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    return Source(values, str(path))


def compose(config_classes: Sequence[type], sources: Sequence[Source]) -> list[Any]:
    """Build one config per class from all sources; a key goes to each class that declares it.

    Raises:
        InputError: A key no class declares, or a value of the wrong type; names key and source.
    """
    chosen: list[dict[str, Any]] = [{} for _ in config_classes]
    hints = [_type_hints(config_class) for config_class in config_classes]
    fields = [{f.name: f for f in dataclasses.fields(c)} for c in config_classes]
    known = {name for names in fields for name in names}
    for source in sources:
        for key, value in without_retired(source, config_classes).items():
            if key not in known:
                shown = key if isinstance(key, str) else brief(key)
                hint = suggestion(shown, known)
                if isinstance(key, bool):
                    hint = "; YAML takes an unquoted yes, no, on or off for a boolean, so quote it"
                raise InputError(f"{source.name}: unknown key '{shown}'{hint}")
            for i, names in enumerate(fields):
                if key in names:
                    where = f"{source.name}: {key}"
                    chosen[i][key] = _checked(value, hints[i][key], names[key], where)
    return [
        config_class(**values) for config_class, values in zip(config_classes, chosen, strict=True)
    ]


def without_retired(source: Source, config_classes: Sequence[type]) -> dict[str, Any]:
    """The values of `source` but for settings of older versions, of which a warning tells.

    Args:
        source: What a file or the command line gives.
        config_classes: May have `RETIRED`: key -> the values that no longer exist; None: all.
    """
    kept = dict(source.values)
    for config_class in config_classes:
        for key, values in getattr(config_class, "RETIRED", {}).items():
            if key in kept and (values is None or kept[key] in values):
                old = brief(kept.pop(key))
                logger.warning("%s: %s: %s is no longer a setting; left out", source.name, key, old)
    return kept


def add_options(parser: argparse.ArgumentParser, config_class: type, title: str) -> None:
    """Add one option per field of `config_class`; options that are not given stay absent."""
    group = parser.add_argument_group(title)
    hints = _type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if not field.metadata:
            continue
        kind, is_list = _scalar_type(hints[field.name])
        if kind is dict:
            continue
        default = field.default
        if isinstance(default, tuple):
            default = " ".join(map(str, default)) or None
        shown = "" if default is None or default == "" else f" (default: {default})"
        keywords: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": field.metadata["help"].replace("%", "%%") + shown.replace("%", "%%"),
        }
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords["type"] = _number_or_word(kind, field.metadata["words"])
            keywords["choices"] = field.metadata["choices"]
            metavar = "|".join([kind.__name__.upper(), *field.metadata["words"]])
            keywords["metavar"] = None if field.metadata["choices"] else metavar
            if is_list:
                keywords["nargs"] = "+"
        action: Any = group.add_argument(*field.metadata["flags"], f"--{field.name}", **keywords)
        action.of_config = True


def deciding(config: Any) -> dict[str, Any]:
    """The fields of a config that decide the result, with their values."""
    values = dataclasses.asdict(config)
    return {
        f.name: values[f.name]
        for f in dataclasses.fields(config)
        if f.metadata.get("decides", True)
        and not (f.metadata.get("added_later") and values[f.name] == f.default)
    }


def config_hash(values: Any) -> str:
    """Hash (12 hex digits) of anything JSON can hold, independent of key order."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def import_object(name: str) -> Any:
    """The object that a registry names as "module:attribute"."""
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def home_expanded(text: str) -> str:
    """`text` with a leading `~/`, which the shell leaves alone after `=`, as the home folder."""
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


@functools.cache
def _type_hints(config_class: type) -> dict[str, Any]:
    """Field -> type; looking it up takes as long as reading a small file."""
    return typing.get_type_hints(config_class)


def _scalar_type(hint: Any) -> tuple[type, bool]:
    """The element type of a hint such as `tuple[int, ...]`, and whether it is a list."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return typing.get_origin(hint) or hint, False


def _number_or_word(kind: type, words: Sequence[str]) -> typing.Callable[[str], Any]:
    """What reads a value of the command line; its name is in the parser's messages."""
    if not words:
        return kind

    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = " or ".join([kind.__name__, *words])
    return read


def _checked(value: Any, hint: Any, field: dataclasses.Field, where: str) -> Any:
    """`value` converted to the field's type, or InputError."""
    kind, is_list = _scalar_type(hint)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if isinstance(value, str) and value in field.metadata.get("words", ()):
        return value
    if is_list:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: expected a list, got {brief(value)}")
        return tuple(_checked_scalar(item, kind, where) for item in value)
    value = _checked_scalar(value, kind, where)
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise InputError(f"{where}: {brief(value)} is not one of {', '.join(choices)}")
    return value


def _checked_scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads "1e-4" (no dot) as a string.
        try:
            value = float(value)
        except (ValueError, OverflowError):
            pass  # refused below
    finite = type(value) is not float or math.isfinite(value)
    whole = type(value) is not int or abs(value) <= LARGEST_INT
    if type(value) is str:
        value = home_expanded(value)
    if type(value) is not kind or not finite or not whole:
        raise InputError(f"{where}: expected {kind.__name__}, got {brief(value)}")
    return value
