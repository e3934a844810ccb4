"""Settings of the adviser: those of a study, and the time that it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expansion.common.config import option
from expansion.common.errors import require
from expansion.study.settings import StudyConfig


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(StudyConfig):
    """Settings of the adviser; what it advises is a study with the same settings."""

    command: ClassVar[str] = "python -m expansion.advise"
    common: ClassVar[frozenset[str]] = StudyConfig.common - {"seeds"} | {"minutes", "worth"}
    files: ClassVar[tuple[str, ...]] = ("advise",)
    identity_file: ClassVar[str] = "advice.yaml"
    top_folder: ClassVar[str] = "advice"
    brief: ClassVar[bool] = True

    minutes: float = option(
        30.0, "time for the pilot; the images and trainings that it advises come after it"
    )
    output_dir: str | None = option(None, "folder of all results; default: advice/<dataset>")
    worth: float = option(
        1.0, "points of accuracy that have to be expected for images to be worth their making"
    )
    seeds: tuple[int, ...] = option((1, 2, 3), "trainings of each arm of the advised study")

    def __post_init__(self):
        super().__post_init__()
        require(self.minutes > 0, f"minutes {self.minutes:g}: give a positive number")
        made = any("method" in arm for arm in self.arms)
        require(made, "arms: none has generated images, so there is nothing to choose from")
        require(
            not self.draw_per_seed,
            "draw_per_seed: the adviser looks at one choice of images; leave it out",
        )
        require(
            self.sweep is None, "sweep: the adviser takes its time for few arms; name them in arms"
        )
        require(
            self.guide is None,
            f"guide {self.guide}: it may have learnt from images that the pilot tests on; leave it "
            "out, and the pilot trains guides of its own",
        )
