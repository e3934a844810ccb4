"""What a classifier learns: an objective gives the batches of a run and their loss.

`Supervised` is the plain one. Others may train or look at images before the run, in `prepare`.
"""

from __future__ import annotations

import dataclasses
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
    training_cache,
)
from expansion.common.seeding import stable_seed
from expansion.data.batches import InOrder, SeededImages, stream_loader
from expansion.images.records import ImageRecord
from expansion.training.mixing import NATURAL, Mixing, by_origin

Progress = Callable[[int, Mapping[str, float]], None]  # step, last evaluation
ProgressBar = Callable[[str, int], AbstractContextManager[Progress]]  # title, number of steps


@dataclass(frozen=True)
class TrainingImages:
    """Images of an arm; those without labels carry label 0, which nothing may read.

    `mixing` says how labelled batches are made up of real and generated ones.
    """

    real: Sequence[ImageRecord]
    generated: Sequence[ImageRecord] = ()
    unlabeled: Sequence[ImageRecord] = ()
    mixing: Mixing = NATURAL


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
    ema_decay: float = 0.0  # of the running mean of weights that is evaluated and saved; 0: none

    def __init__(self, recipe: Recipe, seed: int, num_images: int):
        self.recipe, self.seed, self.num_images = recipe, seed, num_images

    @classmethod
    def prepare(cls, images: TrainingImages, config: Any, run: Run) -> Objective:
        """The objective of a run, after whatever has to come before it.

        Earlier stages are trained here and images labelled, which may take hours; what a stopped
        run has done of that is not done again. Called in every process.

        Args:
            images: Of the arm.
            config: Settings of this way to learn; None if it has none.
            run: Its classifier may be trained here, and files be left in its folder.
        """
        raise NotImplementedError(f"{cls.__name__}.prepare")

    @classmethod
    def check(cls, recipe: Recipe, config: Any, num_processes: int) -> None:
        """Raise InputError for settings that `prepare` would refuse; before anything is loaded.

        Args:
            recipe: Of the run.
            config: See `prepare`.
            num_processes: That train together.
        """
        return  # most refuse nothing

    @abstractmethod
    def batches(
        self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator
    ) -> Iterable[Sequence[Tensor]]:
        """Batches first, first+1, ... of the run, as lists of tensors on the device.

        Args:
            batch_sizes: Images of every batch of the whole run, all processes together.
            first: Batches before this one were done before.
            accelerator: Device and processes; each process gives its share of every batch.
        """

    @abstractmethod
    def loss(
        self, model: nn.Module, batch: Sequence[Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        """Loss to minimise, and whether each image's label was predicted, (B,) bool.

        Args:
            model: What `wrap` gave, in training mode.
            batch: One of `batches`.
            progress: Share of the run's optimiser steps that is done, 0 to 1.
        """

    def stream(
        self,
        records: Sequence[ImageRecord],
        transform: Callable[[Image.Image], Any],
        batch_sizes: Sequence[int],
        first: int,
        accelerator: Accelerator,
        salt: str = "",
        mixing: Mixing = NATURAL,
    ) -> OnDevice:
        """Shuffled (network inputs, labels) of this process, on its device; of use for `batches`.

        Args:
            records: Images of one pass.
            transform: From a PIL image to pixels, or to a tuple of several views.
            batch_sizes: As for `batches`; `first` and `accelerator` too.
            salt: Gives a second stream of a run another order than the first.
            mixing: How batches are made up of real and generated images.
        """
        batches = mixing.batches(records)(
            batch_sizes,
            seed=stable_seed(salt, self.seed) if salt else self.seed,
            first=first,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        device = accelerator.device
        images = SeededImages(records, transform, training_cache(self.recipe))
        pin_memory = device.type == "cuda"
        return OnDevice(stream_loader(images, batches, self.recipe.num_workers, pin_memory), device)

    def wrap(self, classifier: Classifier) -> nn.Module:
        """What is trained: the classifier, or a module around it. Its eval mode gives logits."""
        return classifier

    def state_dict(self) -> Mapping[str, Any]:
        """What a resumed run needs beside weights and position: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`."""
        return  # most have none

    def results(self) -> Mapping[str, float]:
        """Figures for results.yaml."""
        return {}


def images_in_order(
    records: Sequence[ImageRecord], recipe: Recipe, device: torch.device
) -> OnDevice:
    """(network inputs, labels) of un-augmented images on `device`, the same in every pass."""
    images = SeededImages(records, eval_transform(recipe), image_cache(recipe))
    return OnDevice(InOrder(images, recipe.num_workers, device.type == "cuda"), device)


class Supervised(Objective):
    """Cross-entropy with the records' labels, or with their probabilities where they have some.

    Args:
        records: Training images.
        recipe: Preprocessing, augmentation, workers.
        seed: Order and augmentation.
        num_classes: Of the classifier.
        mixing: How batches are made up of real and generated images.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        recipe: Recipe,
        seed: int,
        num_classes: int,
        mixing: Mixing = NATURAL,
    ):
        real, generated = by_origin(records)
        super().__init__(recipe, seed, mixing.images_per_epoch(len(real), len(generated)))
        self.records, self.mixing = records, mixing
        self.targets = soft_targets(records, num_classes)
        self.augmented = AugmentedBatch(recipe, num_classes)

    @classmethod
    def prepare(cls, images: TrainingImages, config: Any, run: Run) -> Supervised:
        """All images under the labels they came with."""
        records = [*images.real, *images.generated]
        return cls(records, run.recipe, run.seed, run.classifier.num_classes, images.mixing)

    def batches(
        self, batch_sizes: Sequence[int], first: int, accelerator: Accelerator
    ) -> Iterator[Sequence[Tensor]]:
        transform, records = train_transform(self.recipe), self.records
        targets = None if self.targets is None else self.targets.to(accelerator.device)
        if targets is not None:
            records = [dataclasses.replace(record, label=i) for i, record in enumerate(records)]
        stream = self.stream(
            records, transform, batch_sizes, first, accelerator, mixing=self.mixing
        )
        for pixels, labels in stream:
            yield [pixels, labels if targets is None else targets[labels]]

    def loss(
        self, model: nn.Module, batch: Sequence[Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        pixels, targets = batch
        inputs, labels = self.augmented.inputs(pixels, targets, progress)
        logits = model(inputs)
        return self.augmented.loss(logits, labels), self.augmented.hits(logits, labels)


def soft_targets(records: Sequence[ImageRecord], num_classes: int) -> Tensor | None:
    """Probabilities (M, N) to learn; None where no record has any, as class numbers are enough."""
    if all(record.soft_label is None for record in records):
        return None
    targets = torch.zeros(len(records), num_classes)
    for row, record in zip(targets, records, strict=True):
        if record.soft_label is None:
            row[record.label] = 1.0
        else:
            row.copy_(torch.tensor(record.soft_label))
    return targets


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
    """The batches (images, labels) of a loader, on a device; there images are normalised.

    Nothing else places what a network learns from. Images may be several views, each a tensor.
    """

    def __init__(self, loader: Iterable[Sequence[Any]], device: torch.device):
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[list[Any]]:
        for images, labels in self.loader:
            if isinstance(images, Tensor):
                inputs = network_input(self._placed(images))
            else:
                inputs = [network_input(self._placed(view)) for view in images]
            yield [inputs, self._placed(labels)]

    def _placed(self, part: Tensor) -> Tensor:
        return part.to(self.device, non_blocking=True)
