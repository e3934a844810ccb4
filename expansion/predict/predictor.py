"""Finished classifiers on images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor

from expansion.classifier.backbones import Classifier, load_named_classifier
from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import eval_transform, network_input
from expansion.common.errors import require
from expansion.predict.finished_runs import FinishedRuns
from expansion.training.objectives import predict

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Predictor:
    """The mean of the probabilities of classifiers that were trained alike.

    Args:
        classifiers: In eval mode.
        class_names: By label.
        recipe: Its preprocessing, `transform`, is that of the training's evaluation, its precision too.
        device: Where the classifiers run.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        class_names: Sequence[str],
        recipe: Recipe,
        device: str | torch.device = "cpu",
    ):
        self.classifiers = [c.to(device).to(memory_format=torch.channels_last) for c in classifiers]
        self.class_names = tuple(class_names)
        self.transform = eval_transform(recipe)
        self.device = torch.device(device)
        self.precision = PRECISIONS.get(recipe.mixed_precision)

    @classmethod
    def load(cls, runs: FinishedRuns, device: str | torch.device = "cpu") -> Predictor:
        """The classifiers of runs after their last step.

        Raises:
            InputError: A checkpoint cannot be read, or the runs know different classes.
        """
        classifiers, names = [], None
        for path in runs.checkpoints:
            classifier, own_names = load_named_classifier(path)
            names = names or own_names
            require(
                names == own_names,
                f"{runs.checkpoints[0]} knows {len(names)} classes and {path} {len(own_names)}, or "
                "they are called otherwise; give one run alone",
            )
            classifiers.append(classifier)
        return cls(classifiers, names, runs.view.recipe, device)

    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, N), float32, on the CPU, of RGB images."""
        return self.of_pixels([self.transform(image) for image in images])

    def of_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """The same, of what `transform` made of images: small, and made where they are read."""
        inputs = network_input(torch.stack(list(pixels)).to(self.device))
        with self._autocast():
            each = [predict(classifier, inputs) for classifier in self.classifiers]
        return torch.stack(each).mean(dim=0).cpu()

    def _autocast(self) -> AbstractContextManager:
        """The number format of the training, where the device has it."""
        on_cpu = self.device.type == "cpu"
        if self.precision is None or (on_cpu and self.precision is torch.float16):
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)
