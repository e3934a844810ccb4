"""Settings of a study: command line > `--config` > as it was begun > dataset file > study file.

A study file is a YAML file whose keys are the options of StudyConfig and, beside them,

    arms            list of ways to train: {} real images only; {augment: randaugment};
                    {method: each} on the set of each method; {method: NAME, labels: ...}
    train           options of the training scripts, for all arms
    expand          options of expand.py, for all methods
    method_options  method -> options of expand.py; under another name, with `method: NAME` among
                    them, a further set by that method: {img2img_0.5: {method: img2img, ...}}
    sweep           option -> list of values; see `sweep`
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import expand
import train_expand
from expansion.classifier.recipe import Recipe
from expansion.common.config import (
    CONFIG_DIR,
    Layers,
    Source,
    compose,
    import_object,
    load_yaml,
)
from expansion.common.errors import InputError, brief, require, unknown_name
from expansion.common.option_parser import OptionParser
from expansion.generation.config import ExpandConfig
from expansion.study.settings import LABELS, METHODS, SCALES, Arm, Settings, StudyConfig
from expansion.study.sweep import swept, with_sweep

EACH = "each"
NESTED = ("train", "expand", "method_options")  # merged key by key, not replaced
# Options of the scripts that only the study gives; an arm may name its labels and a tag.
SET_BY_STUDY = frozenset(
    "dataset data_dir name checkpoint_dir exp expanded_dir output_dir method labels tag seeds "
    "pretrained_model_name_or_path encoder_weight_path split total_split join shots subset_seed "
    "subset_file fold test_fraction dry_run on_error on_incomplete output_format images_per_tar "
    "arch pretrained lr".split()
)


def read_command_line(
    arguments: Sequence[str], description: str, study: type[StudyConfig] = StudyConfig
) -> Layers:
    """Read options and study files, and check what can be checked without looking at the images.

    Args:
        arguments: The command line.
        description: What `--help` says of the command.
        study: The class of the settings.

    Raises:
        InputError: An unknown option, key, arm or method, or a wrong value; names it and its place.
    """
    parser = OptionParser(prog=study.command, description=description, common=study.common)
    parser.take_words(["dataset"], "PHOTOS", "folder of photos, or the name of a dataset")
    parser.add_argument(
        "--sweep",
        nargs="+",
        metavar="OPTION=VALUE,VALUE",
        default=argparse.SUPPRESS,
        help="compare every combination of these values of options of expand.py, in all methods "
        "that know them, and of the training scripts, in all arms that know them, such as "
        "rho=1,10 K=1,3",
    )
    asked = with_sweep(parser.read(arguments, {"study": study}))
    settle(asked, SCALES[0], study=study)
    require(
        asked.peek("dataset") is not None,
        "which photos? give a folder that holds a folder of images per class, or 'mnist-few-shot' "
        "for the digits that come with this",
    )
    return asked


def settle(
    asked: Layers,
    fitting: str,
    between: Iterable[Source] = (),
    study: type[StudyConfig] = StudyConfig,
) -> Settings:
    """All settings, with the study file of the scale that is given, else of the `fitting` one.

    Args:
        asked: What was typed and what the `--config` files hold.
        fitting: One of SCALES.
        between: What wins over the study files, but not over what was typed.
        study: The class of the settings.

    Raises:
        InputError: See `read_command_line`.
    """
    # The study file of the scale lies beneath what was given.
    given = asked.over(*between)
    scale = given.peek("scale")
    scale = scale if scale in SCALES else fitting  # `compose` refuses what is none
    files = (scale, *study.files)
    given = given.over(*(load_yaml(CONFIG_DIR / "studies" / f"{name}.yaml") for name in files))
    (config,) = given.compose(study)
    config, sources = dataclasses.replace(config, scale=scale), given.sources
    places = {key: source.name for source in sources for key in source.values}
    # Options for trainings, expansions and single methods must be options of these commands.
    parts = {key: _parts(sources, key) for key in NESTED}
    for source in (*parts["train"], *parts["expand"]):
        _check_keys(source)
    by_method, samplers = _by_method(parts["method_options"])
    for name in config.methods:
        _require_known(name, tuple(samplers), "method", places["methods"])
    for name, own in by_method.items():
        _check_method(name, samplers[name], parts["expand"], own, used=name in config.methods)
    # Every method must serve an arm.
    arms = _arms(config, tuple(samplers), places["arms"], parts["train"])
    methods = {arm.method for arm in arms} & set(config.methods)
    unused = [name for name in config.methods if name not in methods]
    require(
        not unused, f"{places['arms']}: no arm trains on the images of {', '.join(unused)}; add one"
    )
    merged = {key: _merged(parts[key]) for key in ("train", "expand")}
    method_options = {name: _merged(own) for name, own in by_method.items()}
    for key in config.sweep or ():
        _check_keys(
            Source({str(key).rpartition(".")[2]: None}, f"{places['sweep']}: sweep"), {"labels"}
        )
    return swept(
        Settings(
            config=config,
            arms=arms,
            samplers=samplers,
            train=merged["train"],
            expand=merged["expand"],
            method_options=method_options,
            places=places,
        )
    )


def _check_method(
    name: str, method: str, common: Sequence[Source], own: Sequence[Source], used: bool
) -> None:
    """Raise InputError for options that a method or further set has not, or that do not fit.

    Args:
        name: Its name.
        method: The method.
        common: Options of all expansions; they need not suit a method without use.
        own: Its own options.
        used: Whether the study uses it.
    """
    for source in own:
        _check_keys(source)
    classes = [ExpandConfig, import_object(expand.SAMPLERS[method][0])]
    errors = []
    for beneath in (common,) if used else (common, ()):
        try:
            compose(classes, [*beneath, *own])
            return
        except InputError as error:
            errors.append(error)
    text = str(errors[-1])  # which may not say where, if it is about several options
    raise InputError(text if name in text else f"{name}: {text}")


def _by_method(given: Sequence[Source]) -> tuple[dict[str, list[Source]], dict[str, str]]:
    """The options of each method and each further set, and the method that makes it.

    Args:
        given: What each place holds as `method_options`. A further set has the options of its
            method, beneath its own.

    Raises:
        InputError: A name is neither that of a method nor that of a set that names its method.
    """
    own: dict[str, list[Source]] = {name: [] for name in METHODS}
    samplers = {name: name for name in METHODS}
    for source in given:
        for name, values in source.values.items():
            where = f"{source.name}: {name}"
            options = dict(_mapping(values, where))
            if "method" in options:
                method = options.pop("method")
                _require_known(method, METHODS, "method", where)
                require(name not in METHODS, f"{where}: is the name of a method; give another")
                require(
                    isinstance(name, str) and re.fullmatch(r"\w[\w.+-]*", name) is not None,
                    f"{where}: names a folder; give a text of letters, numbers, '.', '+', '-' and "
                    "'_' that begins with a letter or number",
                )
                samplers[name] = method
            _require_known(name, tuple(samplers), "method", source.name)
            own.setdefault(name, []).append(Source(options, where))
    beneath = {name: own[method] if method != name else [] for name, method in samplers.items()}
    return {name: [*beneath[name], *own[name]] for name in samplers}, samplers


def _arms(
    config: StudyConfig, methods: tuple[str, ...], place: str, train: Sequence[Source]
) -> tuple[Arm, ...]:
    """The arms, `method: each` written out; those of methods that are not used are left out.

    Args:
        config: Settings of the study.
        methods: Names of all methods and further sets.
        place: Where the arms are given.
        train: Options of all trainings.
    """
    found: list[Arm] = []
    for number, given in enumerate(config.arms, 1):
        where = f"{place}: arm {number}"
        values = dict(given)
        method, labels = values.pop("method", None), values.pop("labels", LABELS[0])
        if "method" in given:
            _require_known(method, (EACH, *methods), "method", where)
        _require_known(labels, LABELS, "labels", where)
        require(
            method is not None or "labels" not in given,
            f"{where}: labels {labels} are those of generated images; name a method as well",
        )
        _check_keys(Source(values, where), {"tag"})
        learning = train_expand.OBJECTIVES[labels].config_class()
        classes = [train_expand.TrainExpandConfig, Recipe, *([learning] if learning else [])]
        compose(classes, [*train, Source(values, where)])
        for each in config.methods if method == EACH else [method]:
            arm = Arm(each, labels, values)
            require(arm not in found, f"{where} is the same as an earlier one: {brief(given)}")
            if each is None or each in config.methods:
                found.append(arm)
    require(
        Arm(None, LABELS[0], {}) in found,
        f"{place}: add the arm {{}}, real images only; it is what the others are compared with",
    )
    return tuple(found)


def _parts(sources: Iterable[Source], key: str) -> list[Source]:
    """What each source holds under `key`."""
    return [
        Source(_mapping(source.values[key], f"{source.name}: {key}"), f"{source.name}: {key}")
        for source in sources
        if source.values.get(key) is not None
    ]


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    require(isinstance(values, dict), f"{where}: expected 'option: value', got {brief(values)}")
    return values


def _merged(sources: Iterable[Source]) -> dict[str, Any]:
    return {key: value for source in sources for key, value in source.values.items()}


def _require_known(name: Any, known: Sequence[str], kind: str, where: str) -> None:
    if name not in known:
        raise InputError(f"{where}: {unknown_name(kind, name, known)}")


def _check_keys(source: Source, but: frozenset[str] | set[str] = frozenset()) -> None:
    """Raise InputError for options of the scripts that the study gives."""
    own = {field.name for field in fields(StudyConfig)}
    for key in source.values:
        remedy = "give it to the study itself" if key in own else "the study sets it"
        require(key not in SET_BY_STUDY - but, f"{source.name}: leave out '{key}'; {remedy}")
