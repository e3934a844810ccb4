"""The arms of `training`: a plain loader and training loop, and this project's."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from expansion.classifier.backbones import Classifier, check_arch
from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import IMAGENET_MEAN, IMAGENET_STD
from expansion.common.devices import make_accelerator
from expansion.images.records import ImageRecord
from expansion.training.objectives import Run, Supervised, TrainingImages
from expansion.training.trainer import Trainer, make_optimizer

SQUARE = 16  # side of the squares of `LinearClassifier`, pixels


class LinearClassifier(nn.Module):
    """A linear map of the means of 16-pixel squares: the cheapest network that sees every pixel.

    With it the loader decides the speed. That is also so on a GPU, which takes a fraction of a
    millisecond per image for a small network.
    """

    arch = "linear"

    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        self.num_classes, self.image_size = num_classes, image_size
        self.body = nn.Sequential(nn.AvgPool2d(SQUARE, ceil_mode=True), nn.Flatten())
        self.head = nn.Linear(3 * math.ceil(image_size / SQUARE) ** 2, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(pixels))


class Clock:
    """Measures the seconds between the ends of two steps, including the work of the device.

    Args:
        first: Number of the step at whose end the time begins.
        last: Number of the step at whose end it stops.
        device: The device that does the work.
    """

    def __init__(self, first: int, last: int, device: torch.device):
        self.first, self.last, self.device = first, last, device
        self.times: list[float] = []

    def __call__(self, step: int, row: Mapping[str, float] | None = None) -> None:
        if step in (self.first, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.times[1] - self.times[0]


def checked_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of all arms; raises InputError for an unknown backbone or unfitting sizes."""
    for arch in options.arch:
        if arch != LinearClassifier.arch:
            check_arch(arch)
    steps = options.warmup + options.steps + 2  # the last step has an evaluation and is not timed
    return Recipe(
        image_size=options.image_size,
        resize_size=options.resize_size,
        batch_size=options.batch_size,
        workers=options.workers,
        budget="steps",
        max_train_steps=steps,
        eval_steps=steps,
        lr=0.01,
        mixed_precision=options.mixed_precision,
        compile=options.compile,
    )


class Bench:
    """The arms as methods; each call is a run of its own and returns images per second.

    Args:
        records: The images `<folder>/images/<class>/*.png`.
        recipe: The recipe that `checked_recipe` gives.
        options: Options of the command.
        folder: Temporary folder, also for run folders.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        recipe: Recipe,
        options: argparse.Namespace,
        folder: Path,
    ):
        self.records, self.recipe, self.options, self.folder = records, recipe, options, folder
        self.num_classes = len({record.label for record in records})
        self.last = options.warmup + options.steps
        self.accelerator = make_accelerator(options.mixed_precision)
        self.device = self.accelerator.device
        self.decoded = False

    def description(self) -> str:
        """The device and the settings in a line."""
        where = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        return (
            f"{where}, torch {torch.__version__}, {torch.get_num_threads()} network threads, "
            f"{self.recipe.num_workers} loading processes, batches of {self.recipe.batch_size}, "
            f"our mixed_precision {self.recipe.mixed_precision}"
        )

    def plain_loader(self) -> float:
        """The plain loader alone."""
        return self._rate(lambda images, labels: None)

    def plain_steps(self, arch: str) -> float:
        """The plain loader with training steps of a backbone."""
        model = self._network(arch).to(self.device).train()
        optimizer = make_optimizer(model, self.recipe)

        def step(images: Tensor, labels: Tensor) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return self._rate(step)

    def _rate(self, step: Callable[[Tensor, Tensor], None]) -> float:
        clock = Clock(self.options.warmup, self.last, self.device)
        for number, (images, labels) in enumerate(itertools.islice(self._plain(), self.last + 1)):
            step(images.to(self.device), labels.to(self.device))
            clock(number)
        return self._images_per_second(clock)

    def _plain(self) -> Iterator[list[Tensor]]:
        recipe = self.recipe
        size = (recipe.resize_size, recipe.resize_size)
        steps = [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomRotation(recipe.rotation),
            transforms.RandomCrop(recipe.image_size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
        loader = DataLoader(
            ImageFolder(str(self.folder / "images"), transforms.Compose(steps)),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=recipe.num_workers,
            persistent_workers=recipe.num_workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        while True:
            yield from loader

    def first_pass(self) -> float:
        """Our loader alone, which decodes all images and keeps none."""
        return self._our_batches(dataclasses.replace(self.recipe, image_cache="none"))

    def our_loader(self) -> float:
        """Our loader alone, after all images have been decoded."""
        self._decode_all()
        return self._our_batches(self.recipe)

    def _our_batches(self, recipe: Recipe) -> float:
        sizes = [recipe.batch_size] * (self.last + 1)
        objective = Supervised(self.records, recipe, 1, self.num_classes)
        clock = Clock(self.options.warmup, self.last, self.device)
        for number, _ in enumerate(objective.batches(sizes, 0, self.accelerator)):
            clock(number)
        return self._images_per_second(clock)

    def our_steps(self, arch: str) -> float:
        """Our trainer with a backbone, up to its only evaluation."""
        self._decode_all()
        with tempfile.TemporaryDirectory(dir=self.folder) as run_dir:
            run = Run(
                classifier=self._network(arch),
                recipe=self.recipe,
                seed=1,
                run_dir=Path(run_dir),
                accelerator=self.accelerator,
                test_records=self.records[:1],
                val_records=(),
                class_names=[str(label) for label in range(self.num_classes)],
                prompt_names=(),
                progress_bar=lambda title, total: nullcontext(lambda step, row: None),
            )
            trainer = Trainer(run, Supervised.prepare(TrainingImages(self.records), None, run))
            clock = Clock(self.options.warmup + 1, self.last + 1, self.device)
            trainer.fit(lambda step, row: clock(step))
        return self._images_per_second(clock)

    def _network(self, arch: str) -> nn.Module:
        if arch == LinearClassifier.arch:
            return LinearClassifier(self.num_classes, self.recipe.image_size)
        return Classifier(arch, self.num_classes, self.recipe.image_size)

    def _decode_all(self) -> None:
        if not self.decoded:
            sizes = [len(self.records)]
            objective = Supervised(self.records, self.recipe, 1, self.num_classes)
            self.decoded = bool(list(objective.batches(sizes, 0, self.accelerator)))

    def _images_per_second(self, clock: Clock) -> float:
        return self.options.steps * self.recipe.batch_size / clock.seconds
