"""Settings of `python -m baselines.textual_inversion`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from baselines.embeddings.config import EmbeddingTrainingConfig
from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.prompts import class_prompt, preset_prompts

KIND = "textual_inversion"


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig(EmbeddingTrainingConfig):
    """Textual inversion with the values of DA-Fusion's released code (arXiv 2302.07944).

    Departures: the trained row alone is a parameter, where the released code trains the whole
    matrix and puts the other rows back; networks are in float32, or bfloat16 by autocast; every
    class has its own random numbers.
    """

    max_train_steps: int = option(1000, "optimiser steps of each class")
    scale_lr: bool = option(True, "multiply the learning rate by train_batch_size: 2e-3")
    initializer_token: str = option("the", "word whose embedding the new one starts from")
    templates: tuple[str, ...] = option(
        (), "captions, {} is the new word; default: configs/prompts/textual_inversion.yaml"
    )

    kind: ClassVar[str] = KIND
    command: ClassVar[str] = "python -m baselines.textual_inversion"

    def __post_init__(self):
        super().__post_init__()
        steps = self.max_train_steps
        require(steps > 0, f"max_train_steps {steps}: give a positive number")
        for template in self.captions:
            class_prompt(template, "")

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """The templates that count."""
        return self.templates or tuple(preset_prompts(KIND, "{}"))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"templates": list(self.captions)}

    @property
    def step_size(self) -> float:
        return self.learning_rate * (self.train_batch_size if self.scale_lr else 1)

    def visits(self, num_images: int) -> int:
        return self.max_train_steps * self.train_batch_size
