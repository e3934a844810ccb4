"""What a classifier learns: an objective gives the batches of a run and their loss.

`Supervised` is the plain one. Others may train or look at images before the run, in `build`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from expansion.classifier.augmentations import AugmentedBatch
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import (
    eval_transform,
    image_cache,
    network_input,
    train_transform,
)
from expansion.data.batches import InOrder, SeededImages, StreamBatches, stream_loader
from expansion.images.records import ImageRecord

Progress = Callable[[int, Mapping[str, float]], None]  # step, last evaluation
ProgressBar = Callable[[str, int], AbstractContextManager[Progress]]  # title, number of steps


@dataclass(frozen=True)
class TrainingImages:
    """Images of an arm; those without labels carry label 0, which nothing may read."""

    real: Sequence[ImageRecord]
    generated: Sequence[ImageRecord] = ()
    unlabeled: Sequence[ImageRecord] = ()


@dataclass(frozen=True)
class Run:
    """One run of an arm, for objectives that train or look at images before it begins.

    Attributes:
        classifier: To be trained, with its initial weights.
        recipe: How an arm is trained; an objective may divide its budget.
        seed: Of everything random in the run.
        run_dir: Folder of the run, claimed already.
        test_records: Evaluated, never learnt from; `val_records` likewise.
        class_names: By label; `prompt_names` are what texts call the classes.
        progress_bar: From a title, "" for the run itself, and the number of steps to a bar that
            gives a `progress` for `Trainer.fit`.
    """

    classifier: Classifier
    recipe: Recipe
    seed: int
    run_dir: Path
    accelerator: Accelerator
    test_records: Sequence[ImageRecord]
    val_records: Sequence[ImageRecord]
    class_names: Sequence[str]
    prompt_names: Sequence[str]
    progress_bar: ProgressBar


class Objective(ABC):
    """What is learnt: batches and their loss.

    Args:
        recipe: How the run is trained.
        seed: Order and augmentation.
        num_images: Images in one pass.
    """

    title: str = ""  # what the progress bar calls this part of a run that has several
    steps_before: int = 0  # optimiser steps spent before this run, as in an earlier stage
    progress: float = 0.0  # share of the run that is done; the trainer sets it before every step

    def __init__(self, recipe: Recipe, seed: int, num_images: int):
        self.recipe, self.seed, self.num_images = recipe, seed, num_images

    @abstractmethod
    def batches(
        self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator
    ) -> Iterable[Sequence[Tensor]]:
        """Batches first, first+1, ... of the run, as lists of tensors on the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss to minimise, and whether each image's label was predicted, (B,) bool."""

    @classmethod
    def check(cls, recipe: Recipe, config: Any, num_processes: int) -> None:
        """Raise InputError for settings that `build` would refuse; before anything is loaded."""

    def wrap(self, classifier: Classifier) -> nn.Module:
        """What is trained: the classifier, or a module around it. Its eval mode gives logits."""
        return classifier

    def state_dict(self) -> Mapping[str, Any]:
        """What a resumed run needs beside weights and position: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`."""

    def results(self) -> Mapping[str, float]:
        """Figures for results.yaml."""
        return {}


def image_stream(
    records: Sequence[ImageRecord],
    transform: Callable[[Image.Image], Any],
    recipe: Recipe,
    batch_sizes: Sequence[int],
    *,
    seed: int,
    first: int,
    accelerator: Accelerator,
) -> OnDevice:
    """Shuffled (network inputs, labels) of this process, on its device, from batch `first` on."""
    batches = StreamBatches(
        len(records),
        batch_sizes,
        seed=seed,
        first=first,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    device = accelerator.device
    images = SeededImages(records, transform, image_cache(recipe))
    pin_memory = device.type == "cuda"
    return OnDevice(stream_loader(images, batches, recipe.num_workers, pin_memory), device)


def images_in_order(
    records: Sequence[ImageRecord], recipe: Recipe, device: torch.device
) -> OnDevice:
    """(network inputs, labels) of un-augmented images on `device`, the same in every pass."""
    images = SeededImages(records, eval_transform(recipe), image_cache(recipe))
    return OnDevice(InOrder(images, recipe.num_workers, device.type == "cuda"), device)


class Supervised(Objective):
    """Cross-entropy with the records' labels; real and generated images are shuffled uniformly.

    Args:
        records: Training images.
        recipe: Preprocessing, augmentation, workers.
        seed: Order and augmentation.
        num_classes: Of the classifier.
    """

    def __init__(self, records: Sequence[ImageRecord], recipe: Recipe, seed: int, num_classes: int):
        super().__init__(recipe, seed, len(records))
        self.records = records
        self.augmented = AugmentedBatch(recipe, num_classes)

    @classmethod
    def build(cls, images: TrainingImages, config: Any, run: Run) -> Supervised:
        """All images under the labels they came with."""
        records = [*images.real, *images.generated]
        return cls(records, run.recipe, run.seed, run.classifier.num_classes)

    def batches(self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator) -> OnDevice:
        return image_stream(
            self.records,
            train_transform(self.recipe),
            self.recipe,
            batch_sizes,
            seed=self.seed,
            first=first,
            accelerator=accelerator,
        )

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        inputs, labels = self.augmented.inputs(*batch, self.progress)
        logits = model(inputs)
        return self.augmented.loss(logits, labels), self.augmented.hits(logits, labels)


@torch.no_grad()
def predict(model: nn.Module, pixels: Tensor) -> Tensor:
    """Probabilities (B, N), without dropout and with the running batch statistics; mode restored.

    Args:
        pixels: (B, 3, H, W), normalised; may be a single image.
    """
    was_training = model.training
    model.eval()
    probabilities = model(pixels).float().softmax(dim=1)
    model.train(was_training)
    return probabilities


class OnDevice:
    """Batches of `loader` on a device; images of 8 bits become the network's input there."""

    def __init__(self, loader: Iterable[Sequence[Any]], device: torch.device):
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.loader:
            yield self._moved(batch)

    def _moved(self, part: Any) -> Any:
        if isinstance(part, Tensor):
            return network_input(part.to(self.device, non_blocking=True))
        return [self._moved(each) for each in part]
