"""Sweeps: sets and arms for every combination of values of some options.

    --sweep rho=1,10 K=1,3           distdiff -> distdiff_rho1_K1, distdiff_rho1_K3, ...
    --sweep tau=0.01,0.1             the arms with labels amst -> two each
    --sweep real_share=0.25,0.5      the arms with generated images -> two each

An option of expand.py makes further sets of the methods that know it, as `method_options` in a
study file does; one of the training scripts multiplies the arms that know it. Methods and arms that
do not know an option stay as they are, and so does the arm of the real images that all are compared
with. Guides, sets and real images are those of one study: what combinations share is done once.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

import expand
import train_expand
from expansion.classifier.recipe import Recipe
from expansion.common.config import YAML_ERRORS, Layers, Source, compose, import_object
from expansion.common.errors import InputError, brief, require, shown, suggestion, unknown_name
from expansion.generation.config import ExpandConfig
from expansion.study.settings import Arm, Settings
from expansion.training.options import TrainConfig

FORM = "--sweep OPTION=VALUE,VALUE, such as --sweep strength=0.5,0.8"
LONGEST_PART = 50  # characters of a name for one option and its value
EXPAND, TRAIN = "expand", "train"  # the prefixes that tell options of one name apart
# Options that the training scripts make part of a run's name, if they are not at their default.
NAMED_BY_SCRIPT = frozenset({*train_expand.NAME_PARTS, "selection", "augment", "crop"})
# What a table can show: of a set beside its method's own settings, and of a run beside its recipe.
SHOWN_OF_SETS = frozenset({"resolution", "seed"})
SHOWN_OF_RUNS = frozenset({*train_expand.NAME_PARTS, "selection"})

Sweep = Mapping[str, Sequence[Any]]  # option -> its values


def read_words(words: Sequence[str]) -> dict[str, list[Any]]:
    """What `--sweep` gives, as a study file has it.

    Args:
        words: `OPTION=VALUE,VALUE`; values are read as in YAML.

    Raises:
        InputError: A word has another form, or two are of one option.
    """
    found: dict[str, list[Any]] = {}
    for word in words:
        key, is_given, values = word.partition("=")
        require(bool(key and is_given), f"sweep: {brief(word)} has no values; give {FORM}")
        require(key not in found, f"sweep: {key} is given twice; give all its values at once")
        try:
            found[key] = [_number_or_same(yaml.safe_load(value)) for value in values.split(",")]
        except YAML_ERRORS as error:
            raise InputError(f"sweep: cannot read {brief(word)}; give {FORM}") from error
    return found


def _number_or_same(value: Any) -> Any:
    """A number for text such as "1e-4", which YAML 1.1 takes for text; else the value."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def with_sweep(asked: Layers) -> Layers:
    """The layers with the words of `--sweep`, if there are any, as a study file has them."""
    *files, typed = asked.sources
    if "sweep" not in typed.values:
        return asked
    sweep = read_words(typed.values["sweep"])
    return Layers((*files, Source({**typed.values, "sweep": sweep}, typed.name)))


def swept(settings: Settings) -> Settings:
    """The settings with the sets and arms of their sweep in the place of those that it multiplies.

    Raises:
        InputError: No method and no training of the study knows an option, a value is wrong, or a
            combination is impossible; names option and place.
    """
    if not settings.config.sweep:
        return settings
    place = f"{settings.places['sweep']}: sweep"
    of_sets, of_runs = _sides(settings, place)
    # Sets, each under a name of its own.
    sets = {
        name: _sets(
            name, {k: v for k, v in of_sets.items() if k in _expand_options(settings, name)}
        )
        for name in settings.config.methods
    }
    made: dict[str, dict[str, Any]] = {}
    for method, combinations in sets.items():
        for name, options in combinations.items():
            made[name] = {**settings.method_options[method], **options}
            known = name in settings.samplers and name != method
            require(not known, f"{place}: {name} is the name of another set of the study")
            _require_possible(
                (ExpandConfig, _sampler_config(settings, method)),
                (settings.expand, made[name]),
                f"{place}: {name}",
            )
    by_sweep = {name: method for method, names in sets.items() for name in names if name != method}
    # Arms: those of a method for each of its sets.
    arms: list[Arm] = []
    for arm in settings.arms:
        names: Iterable[str | None] = sets[arm.method] if arm.method is not None else [None]
        for name, each in itertools.product(names, _trained(arm, of_runs, settings, place)):
            own = dataclasses.replace(each, method=name)
            arms += [own] if own not in arms else []
    return dataclasses.replace(
        settings,
        config=dataclasses.replace(settings.config, methods=tuple(made)),
        arms=tuple(arms),
        samplers={
            **settings.samplers,
            **{name: settings.samplers[method] for name, method in by_sweep.items()},
        },
        method_options={**settings.method_options, **made},
        by_sweep=frozenset(by_sweep),
        columns=_columns(of_sets, of_runs, settings),
    )


def _sides(settings: Settings, place: str) -> tuple[Sweep, Sweep]:
    """The options of sets and those of trainings, with their values."""
    sides: dict[str, dict[str, Sequence[Any]]] = {EXPAND: {}, TRAIN: {}}
    known = {
        EXPAND: {k for name in settings.config.methods for k in _expand_options(settings, name)},
        TRAIN: {k for arm in settings.arms for k in _training_options(arm)},
    }
    labels = (settings.config.sweep or {}).get("labels")
    for value in labels if isinstance(labels, list) else []:
        known[TRAIN] |= _of_labels(value)
    for given, values in (settings.config.sweep or {}).items():
        side, is_told, key = str(given).rpartition(".")
        knowing = [each for each in sides if key in known[each] and (not is_told or each == side)]
        if not knowing:
            raise _unknown(str(given), known[EXPAND] | known[TRAIN], place)
        require(
            len(knowing) == 1,
            f"{place}: {key} is an option of the images and one of the trainings; give "
            f"{EXPAND}.{key} or {TRAIN}.{key}",
        )
        sides[knowing[0]][key] = _checked(key, values, f"{place}: {key}")
    return sides[EXPAND], sides[TRAIN]


def _unknown(given: str, known: set[str], place: str) -> InputError:
    """The error for an option that nothing in the study has."""
    key = given.rpartition(".")[2]
    others = [
        n for n, (config, _) in expand.SAMPLERS.items() if key in _names(import_object(config))
    ]
    others += [f"labels {name}" for name in train_expand.OBJECTIVES if key in _of_labels(name)]
    hint = f"; {shown(others)} has it" if others else suggestion(given, known)
    return InputError(f"{place}: no method and no arm of the study has the option '{given}'{hint}")


def _checked(key: str, values: Any, where: str) -> Sequence[Any]:
    """The values of an option, all different in names of folders.

    Raises:
        InputError: They are no list of values, or two of them are alike.
    """
    require(
        key != "num_images_per_prompt",
        f"{where}: sweep max_variants, which takes the first images of one set",
    )
    require(isinstance(values, list) and bool(values), f"{where}: give a list of values")
    for value in values if key == "labels" else ():
        if value not in list(train_expand.OBJECTIVES):
            raise InputError(f"{where}: {unknown_name(key, value, list(train_expand.OBJECTIVES))}")
    require(None not in values and "" not in values, f"{where}: a value is missing; give {FORM}")
    parts = [_part(key, value) for value in values]
    for number, part in enumerate(parts):
        require(
            len(part) <= LONGEST_PART,
            f"{where}: {brief(values[number])} is too long for the name of a folder; make a set or "
            "arm of your own in a study file",
        )
        require(
            part not in parts[:number],
            f"{where}: {brief(values[number])} and an earlier value would both be called {part}",
        )
    return values


def _part(key: str, value: Any) -> str:
    """An option and its value as part of a name."""
    if isinstance(value, bool):
        return key if value else f"no_{key}"
    if isinstance(value, list | tuple):
        text = "-".join(map(str, value))
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return key + re.sub(r"[^\w.+-]+", "-", text)


def _sets(method: str, sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Name of a set -> the options in which it differs from that of the method."""
    combinations = [
        dict(zip(sweep, each, strict=True)) for each in itertools.product(*sweep.values())
    ]
    return {"_".join([method, *(_part(k, v) for k, v in c.items())]): c for c in combinations}


def _trained(arm: Arm, sweep: Sweep, settings: Settings, place: str) -> list[Arm]:
    """The arm with every combination of the options that it knows; `labels` decides which."""
    found = [arm]
    for key in sorted(sweep, key=lambda key: key != "labels"):
        found = [
            new
            for each in found
            for new in (
                [_with_option(each, key, value, settings) for value in sweep[key]]
                if key in _training_options(each)
                else [each]
            )
        ]
    for each in found:
        labels = {"labels": each.labels} if each.method is not None else {}
        _require_possible(_training_classes(each), (settings.train, each.options, labels), place)
    plain = arm.method is None and not arm.options
    return [arm, *found] if plain else found


def _with_option(arm: Arm, key: str, value: Any, settings: Settings) -> Arm:
    """The arm with an option, which the name of its run tells."""
    if key == "labels":
        return dataclasses.replace(arm, labels=value)
    options = {**arm.options, key: value}
    if key in NAMED_BY_SCRIPT:
        if value == _default(arm, key) and key not in settings.train:
            del options[key]
    else:
        parts = [options.get("tag"), _part(key, value)]
        options["tag"] = "_".join(part for part in parts if part)
    return dataclasses.replace(arm, options=options)


def _require_possible(
    config_classes: Sequence[type], values: Iterable[Mapping[str, Any]], where: str
) -> None:
    """Raise InputError for what the script with these settings would refuse."""
    try:
        compose(config_classes, [Source(each, where) for each in values])
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(where) else f"{where}: {text}") from error


def _sampler_config(settings: Settings, method: str) -> type:
    return import_object(expand.SAMPLERS[settings.samplers[method]][0])


def _expand_options(settings: Settings, method: str) -> set[str]:
    return _names(ExpandConfig, _sampler_config(settings, method))


def _training_classes(arm: Arm) -> list[type]:
    """The classes of the settings of an arm's training."""
    if arm.method is None:
        return [TrainConfig, Recipe]
    learning = train_expand.OBJECTIVES[arm.labels].config_class()
    return [train_expand.TrainExpandConfig, Recipe, *([learning] if learning else [])]


def _training_options(arm: Arm) -> set[str]:
    return _names(*_training_classes(arm))


def _of_labels(labels: Any) -> set[str]:
    learning = train_expand.OBJECTIVES.get(labels) if isinstance(labels, str) else None
    config_class = learning.config_class() if learning else None
    return _names(config_class) if config_class else set()


def _names(*config_classes: type) -> set[str]:
    return {field.name for each in config_classes for field in fields(each)}


def _default(arm: Arm, key: str) -> Any:
    defaults = {f.name: f.default for each in _training_classes(arm) for f in fields(each)}
    return defaults[key]


def _columns(of_sets: Sweep, of_runs: Sweep, settings: Settings) -> tuple[str, ...]:
    """The options that get a column in tables, by their names in results.yaml: what differs."""
    of_methods = _deciding(*(_sampler_config(settings, name) for name in settings.config.methods))
    of_labels = {
        key for name in train_expand.OBJECTIVES for key in _of_labels(name) - _names(Recipe)
    }
    found = {
        **{key: f"expanded_set.{key}" for key in of_sets if key in of_methods | SHOWN_OF_SETS},
        **{key: key for key in of_runs if key in _deciding(Recipe) | SHOWN_OF_RUNS},
        **{key: f"learning.{key}" for key in of_runs if key in of_labels},
    }
    return tuple(found[k] for k, v in {**of_sets, **of_runs}.items() if k in found and len(v) > 1)


def _deciding(*config_classes: type) -> set[str]:
    every = (field for each in config_classes for field in fields(each))
    return {field.name for field in every if field.metadata.get("decides", True)}
