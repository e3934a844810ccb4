"""Trains an embedding for every real image of a class, group by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from baselines.diffusion_inversion.config import InversionTrainingConfig
from baselines.embeddings.sets import images_to_text
from baselines.embeddings.training import AfterStep, EmbeddingTrainer, Task, Visit
from expansion.common.seeding import stable_seed
from expansion.images.records import ImageRecord


class InversionTrainer:
    """Trains embeddings that take the place of the text encoder's output.

    Args:
        pipeline: The checkpoint, float32; it stays as it is.
        config: Settings of the training.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, config: InversionTrainingConfig):
        self.config = config
        self.width = pipeline.unet.config.cross_attention_dim
        self.trainer = EmbeddingTrainer(pipeline, config)

    def train(
        self,
        class_name: str,
        records: Sequence[ImageRecord],
        state_dir: Path,
        after_step: AfterStep,
    ) -> tuple[dict[str, Tensor], dict[str, str], float]:
        """Train the embeddings of a class.

        Args:
            class_name: The class.
            records: Its training images.
            state_dir: Folder of the resumable states, one for each group.
            after_step: As in `EmbeddingTrainer.train`; steps count through all groups.

        Returns:
            file_name of each image -> embedding (tokens, D), what the file says beside them, and
            the seconds.
        """
        tensors: dict[str, Tensor] = {}
        images: dict[str, tuple[int, str | None]] = {}
        seconds, steps_before = 0.0, 0
        for number, group in enumerate(cut_groups(records, self.config.group_size)):
            task = self._task(f"{class_name}\x1f{number}", group)
            path = state_dir / f"{number}.safetensors"

            def noted(step: int, loss: float, before: int = steps_before) -> None:
                after_step(before + step, loss)

            values, spent = self.trainer.train(task, _embed, path, noted)
            seconds += spent
            steps_before += task.steps
            names = [record.file_name for record in group]
            tensors |= {name: row.clone() for name, row in zip(names, values, strict=True)}
            images |= {record.file_name: (number, record.content) for record in group}
        return tensors, images_to_text(images), seconds

    def _task(self, name: str, group: Sequence[ImageRecord]) -> Task:
        config, count = self.config, len(group)
        generator = torch.Generator("cpu").manual_seed(stable_seed("start", config.seed, name))
        shape = (count, config.num_tokens, self.width)
        start = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(count)
        batch_size = min(config.train_batch_size, count)
        return Task(name, group, start, config.visits(count), batch_size, shuffled=False)


def _embed(values: Tensor, visits: Sequence[Visit]) -> Tensor:
    return values[[visit.index for visit in visits]]


def cut_groups(records: Sequence[ImageRecord], size: int) -> list[Sequence[ImageRecord]]:
    """The records in their order, cut into groups of at most `size` that are as equal as can be."""
    number = math.ceil(len(records) / size)
    ends = [len(records) * i // number for i in range(number + 1)]
    return [records[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
