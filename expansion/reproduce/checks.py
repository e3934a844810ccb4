"""What a table's file may ask for: options that its commands have, and that count for the cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import expand
import train_expand
from expansion.classifier.recipe import Recipe
from expansion.common.config import Source, compose, import_object
from expansion.common.errors import InputError, require, suggestion, unknown_name
from expansion.reproduce.papers import Table
from expansion.reproduce.schema import REAL, SetSpec
from expansion.study.config import LABELS
from expansion.study.steps import needs_guide
from expansion.training.options import Learning, TrainConfig

OF_SETS = ("images", "options", "guide", "best_of")  # keys of a cell that are about its set
KNOWN_ARCHS = frozenset(  # of the papers' tables; to look up others takes torch, for seconds
    "resnet18 resnet50 resnext50 wide_resnet50_2 mobilenetv2 swin_v2_t open_clip_vit_b32".split()
)
TIMED = {"num_inference_steps"}  # the options of expand.py that expansion.benchmark takes


def option_names(config_class: type) -> set[str]:
    """The options that a class of settings has."""
    return {each.name for each in dataclasses.fields(config_class)}


def method_config(spec: SetSpec, where: str) -> type:
    """The class of the settings of a set's method."""
    if spec.method not in expand.SAMPLERS:
        raise unknown_name(f"method of {where}", spec.method, list(expand.SAMPLERS))
    return import_object(expand.SAMPLERS[spec.method][0])


def learning_of(options: Mapping[str, Any], is_expanded: bool) -> Learning:
    """How an arm with these options learns."""
    labels = options.get("labels", LABELS[0]) if is_expanded else LABELS[0]
    if options.get("unlabeled_dir") and labels == LABELS[0]:
        return train_expand.SEMI_SUPERVISED
    return train_expand.OBJECTIVES[labels]


def check_own(table: Table, row: str, column: str, where: str) -> None:
    """Raise InputError for what a cell's row or column says and the cell would not use.

    What `cells` says is for the cells that it suits: ImageNet's real images alone leave out how
    many images get a variant.
    """
    spec, own = table.specs[row, column], table.own[row, column]
    if spec.set == REAL:
        given = [key for key in OF_SETS if own.get(key)]
        require(
            not given and spec.measure == "accuracy",
            f"{where}: {', '.join(given) or spec.measure}: is for a set; name one as `set`, or "
            "leave it out: without, the cell is that of real images alone",
        )
        check_names_of_real(own.get("train") or {}, spec.train or {}, f"{where}: train")
        return
    set_spec, _ = table.paper.set_spec(spec.set, spec.dataset)
    method_config(set_spec, f"{where}: set {spec.set}")
    require(
        not own.get("guide") or needs_guide(set_spec.method),
        f"{where}: guide: no classifier guides {set_spec.method}; leave it out",
    )
    if spec.measure == "seconds":
        names = {**(own.get("options") or {}), **(own.get("best_of") or {})}
        require(
            set(names) <= TIMED,
            f"{where}: options: of these, a timing takes {', '.join(TIMED)} alone; leave out "
            f"{', '.join(sorted(set(names) - TIMED))}",
        )


def check_names_of_real(names: Iterable[str], options: Mapping[str, Any], where: str) -> None:
    """Raise InputError for a name that is no option of training on real images alone.

    Args:
        names: The names.
        options: All options of the training.
        where: What to call the place.
    """
    known = {n for each in _training_classes(options, False) for n in option_names(each)}
    for name in names:
        if name not in known:
            hint = suggestion(name, known)
            raise InputError(f"{where}: {name}: training on real images has no such option{hint}")


def check_training(options: Mapping[str, Any], images: int, where: str) -> None:
    """Raise InputError for options that no training command has, or takes.

    Args:
        options: The options.
        images: Images of each real one at the paper's scale; 0: real images alone.
        where: What to call the place.
    """
    labels = options.get("labels", LABELS[0])
    require(labels in LABELS, f"{where}: train: labels {labels}: give one of {', '.join(LABELS)}")
    compose(_training_classes(options, True), [Source(options, f"{where}: train")])
    if options.get("arch", Recipe.arch) not in KNOWN_ARCHS:
        import_object("expansion.classifier.backbones:check_arch")(options["arch"])
    variants = options.get("max_variants") or 0
    require(
        not images or variants <= images,
        f"{where}: train: max_variants {variants} of {images} images of each real one; give at "
        "most as many, or more images",
    )


def _training_classes(options: Mapping[str, Any], is_expanded: bool) -> list[type]:
    own = learning_of(options, is_expanded).config_class()
    command = train_expand.TrainExpandConfig if is_expanded else TrainConfig
    return [command, Recipe, *([own] if own else [])]
