"""The settings of a study, as its files and its command line give them and as they are settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import expand
import train_expand
from expansion.common.config import option
from expansion.common.errors import require

COMMON = frozenset(  # what --help shows
    "methods num_images_per_prompt model arch seeds scale output_dir shots test_fraction "
    "yes dry_run".split()
)
SCALES = ("tiny", "small", "paper")
METHODS = tuple(expand.SAMPLERS)
LABELS = tuple(train_expand.OBJECTIVES)


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
    sweep: dict | None = option(None, "option -> values of which every combination is compared")

    def __post_init__(self):
        require(
            self.num_images_per_prompt > 0,
            f"num_images_per_prompt {self.num_images_per_prompt}: give a positive number",
        )
        require(bool(self.seeds), "seeds: give one or more numbers, such as 1 2 3")
        check_seeds(self.seeds)
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


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raise InputError if one occurs twice: its run would count as two."""
    twice = len(set(seeds)) < len(seeds)
    require(not twice, f"seeds {' '.join(map(str, seeds))}: one occurs twice")


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
        by_sweep: The names in `samplers` that a sweep has added.
        columns: Settings that get a column in tables, by their names in results.yaml.
    """

    config: StudyConfig
    arms: tuple[Arm, ...]
    samplers: Mapping[str, str]
    train: Mapping[str, Any]
    expand: Mapping[str, Any]
    method_options: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, str]
    by_sweep: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()
