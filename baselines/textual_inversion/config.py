"""Settings of `python -m baselines.textual_inversion`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from baselines.embeddings.config import EmbeddingTrainingConfig
from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.prompts import class_prompt

KIND = "textual_inversion"

# Plain captions of an object, of which every visit draws one; {} is the new word.
TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a photograph of the {}",
    "an image of one {}",
    "a good photo of a {}",
    "a bad photo of a {}",
    "a sharp photo of the {}",
    "a blurred photo of a {}",
    "a bright photo of the {}",
    "a dark photo of a {}",
    "a close-up of a {}",
    "a close-up photo of the {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a photo of an odd {}",
    "a photo of a nice {}",
    "a photo of one {}",
    "a photo of my {}",
    "a photo of this {}",
    "a cropped photo of a {}",
    "a cropped picture of the {}",
    "a pixelated photo of a {}",
    "a snapshot of a {}",
    "a rendition of the {}",
    "a depiction of a {}",
)


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
        (), f"captions, {{}} is the new word; default: {len(TEMPLATES)} of an object"
    )

    kind: ClassVar[str] = KIND
    command: ClassVar[str] = "python -m baselines.textual_inversion"

    def __post_init__(self):
        super().__post_init__()
        steps = self.max_train_steps
        require(steps > 0, f"max_train_steps {steps}: give a positive number")
        for template in self.captions:
            class_prompt(template, "")

    @property
    def captions(self) -> tuple[str, ...]:
        """The templates that count."""
        return self.templates or TEMPLATES

    @property
    def step_size(self) -> float:
        return self.learning_rate * (self.train_batch_size if self.scale_lr else 1)

    def visits(self, num_images: int) -> int:
        return self.max_train_steps * self.train_batch_size
