"""Settings of a study: command line > `--config` > as it was begun > dataset file > study file.

A study file is a YAML file whose keys are the options of StudyConfig and, beside them,

    arms            list of ways to train: {} real images only; {augment: randaugment};
                    {method: each} on the set of each method; {method: NAME, labels: ...}
    train           options of the training scripts, for all arms
    expand          options of expand.py, for all methods
    method_options  method -> options of expand.py; under another name, with `method: NAME` among
                    them, a further set by that method: {img2img_0.5: {method: img2img, ...}}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

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
    option,
)
from expansion.common.errors import InputError, brief, require, unknown_name
from expansion.common.option_parser import OptionParser
from expansion.generation.config import ExpandConfig

COMMON = frozenset(  # what --help shows
    "methods num_images_per_prompt model arch seeds scale output_dir shots test_fraction "
    "yes dry_run".split()
)
SCALES = ("tiny", "small", "paper")
EACH = "each"
METHODS = tuple(expand.SAMPLERS)
LABELS = tuple(train_expand.OBJECTIVES)
NESTED = ("train", "expand", "method_options")  # merged key by key, not replaced
# Options of the scripts that only the study gives; an arm may name its labels and a tag.
SET_BY_STUDY = frozenset(
    "dataset data_dir name checkpoint_dir exp expanded_dir output_dir method labels tag seeds "
    "pretrained_model_name_or_path encoder_weight_path split total_split join shots subset_seed "
    "subset_file fold test_fraction dry_run on_error on_incomplete output_format images_per_tar "
    "arch pretrained lr".split()
)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of a study.

    Attributes:
        command: What one types for it.
        common: Options that `--help` shows.
        files: Study files whose values win over that of the scale.
        identity_file: In the folder of results: what it was begun with.
        top_folder: Where the folder of results lies if none is given.
        brief: Whether the titles of its commands are shown in the place of their output.
    """

    command: ClassVar[str] = "python -m expansion.study"
    common: ClassVar[frozenset[str]] = COMMON
    files: ClassVar[tuple[str, ...]] = ()
    identity_file: ClassVar[str] = "study.yaml"
    top_folder: ClassVar[str] = "study"
    brief: ClassVar[bool] = False

    dataset: str | None = option(None, "folder of photos, or the name of a dataset")
    methods: tuple[str, ...] = option((), "how images are generated; default: the study file's")
    num_images_per_prompt: int = option(5, "images that are generated from each real one")
    model: str | None = option(
        None, "Stable Diffusion checkpoint: hub id or diffusers folder; default: the study file's"
    )
    arch: str | None = option(
        None, "network of the classifiers; default: one that suits the images", flags=("-a",)
    )
    seeds: tuple[int, ...] = option((1, 2, 3), "trainings of each arm")
    scale: str | None = option(
        None,
        "study file of configs/studies: tiny (small images, minutes on a CPU), small (few photos, "
        "one GPU), paper (the papers' recipe); default: by the size of the images",
        choices=SCALES,
    )
    output_dir: str | None = option(None, "folder of all results; default: study/<dataset>")
    data_dir: str = option("data", "where named datasets lie")
    name: str | None = option(
        None, "what folders of results call the dataset; default: its name or last folder"
    )
    shots: int | None = option(None, "use only this many real images per class")
    subset_seed: int = option(0, "which images --shots keeps")
    draw_per_seed: bool = option(
        False,
        "each seed trains on --shots other images and on what is made of them, so that the "
        "intervals hold for other images as well",
    )
    test_fraction: float | None = option(
        None, "share of each class for testing, if there are no test images; default: 0.3"
    )
    lr: float | None = option(
        None, "peak learning rate of the classifiers; default: one that suits the network"
    )
    pretrained: bool | None = option(
        None, "start classifiers from ImageNet's weights; default: where these can be had"
    )
    guide: str | None = option(
        None,
        "classifier for methods that are guided by one; default: that of the real images alone, "
        "with the first seed",
    )
    devices: tuple[str, ...] = option((), "numbers of the GPUs to use; default: all")
    page: bool = option(True, "make the page at the end")
    yes: bool = option(False, "do not ask before the work begins")
    dry_run: bool = option(False, "print the plan and its commands, and stop")
    arms: tuple[dict, ...] = option((), "ways to train")
    train: dict | None = option(None, "options of the training scripts")
    expand: dict | None = option(None, "options of expand.py")
    method_options: dict | None = option(None, "method -> options of expand.py")

    def __post_init__(self):
        require(
            self.num_images_per_prompt > 0,
            f"num_images_per_prompt {self.num_images_per_prompt}: give a positive number",
        )
        require(bool(self.seeds), "seeds: give one or more numbers, such as 1 2 3")
        twice = len(set(self.seeds)) < len(self.seeds)
        require(not twice, f"seeds {' '.join(map(str, self.seeds))}: one occurs twice")
        fraction = self.test_fraction
        require(
            fraction is None or 0 < fraction < 1,
            f"test_fraction {fraction}: give a share between 0 and 1, such as 0.3",
        )
        if self.draw_per_seed:
            require(self.shots is not None, "draw_per_seed: give --shots, the images per class")
            require(
                self.subset_seed == 0,
                f"subset_seed {self.subset_seed}: with draw_per_seed the seeds choose the images",
            )


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        method: Whose generated images join the real ones, a name in `Settings.samplers`; None:
            real images only.
        labels: What they teach; see train_expand.py.
        options: Further options of the training scripts.
    """

    method: str | None
    labels: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """All settings of a study.

    Attributes:
        arms: Those of the methods that are used.
        samplers: Method, or name of a further set in `method_options` -> the method that makes it.
        train, expand: Options of the scripts, merged from all places; `method_options` likewise.
        places: Setting -> the file or command line that gave it.
    """

    config: StudyConfig
    arms: tuple[Arm, ...]
    samplers: Mapping[str, str]
    train: Mapping[str, Any]
    expand: Mapping[str, Any]
    method_options: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, str]


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
    asked = parser.read(arguments, {"study": study})
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
        for source in own:
            _check_keys(source)
        if own or name in config.methods:  # what holds for all need not suit a method without use
            config_class = import_object(expand.SAMPLERS[samplers[name]][0])
            compose([ExpandConfig, config_class], [*parts["expand"], *own])
    # Every method must serve an arm.
    arms = _arms(config, tuple(samplers), places["arms"], parts["train"])
    methods = {arm.method for arm in arms} & set(config.methods)
    unused = [name for name in config.methods if name not in methods]
    require(
        not unused, f"{places['arms']}: no arm trains on the images of {', '.join(unused)}; add one"
    )
    merged = {key: _merged(parts[key]) for key in ("train", "expand")}
    method_options = {name: _merged(own) for name, own in by_method.items()}
    return Settings(config, arms, samplers, **merged, method_options=method_options, places=places)


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
