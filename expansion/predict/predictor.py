"""Uses finished classifiers on images in memory."""

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
    """Averages the probabilities of classifiers that were trained on the same classes.

    Args:
        classifiers: In eval mode.
        class_names: Names of the classes, by label.
        recipe: Gives preprocessing and precision, as in the evaluation during training.
        device: Where the classifiers run.

    Attributes:
        transform: The preprocessing of a PIL image.
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
        """Load the classifiers of finished runs.

        Args:
            runs: The runs.
            device: Where the classifiers run.

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
        """Probabilities (B, N) of the N classes for B RGB images, float32, on the CPU."""
        return self.of_pixels([self.transform(image) for image in images])

    def of_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Probabilities (B, N) for images that `transform` has prepared already.

        Prepared images are small, and threads can make them while they read the files.
        """
        inputs = network_input(torch.stack(list(pixels)).to(self.device))
        with self._autocast():
            each = [predict(classifier, inputs) for classifier in self.classifiers]
        return torch.stack(each).mean(dim=0).cpu()

    def _autocast(self) -> AbstractContextManager:
        """Inside this context the number format is that of the training, if the device has it."""
        on_cpu = self.device.type == "cpu"
        if self.precision is None or (on_cpu and self.precision is torch.float16):
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)
