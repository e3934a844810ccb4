"""CLIP's labels for generated images, compared with in DreamDA's Table 8.

Every generated image gets the class that zero-shot CLIP finds most probable; none is left out.
They stand in `<run_dir>/clip_labels.jsonl`, a row per generated image, from which a stopped run
goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines.labels.clip_labels_config import ClipLabelsConfig
from baselines.labels.label_results import label_results
from expansion.classifier.clip import ClipClassifier
from expansion.common.errors import require
from expansion.common.files import write_atomic
from expansion.images.records import ImageRecord
from expansion.training.objectives import Run, Supervised, TrainingImages


@dataclass(frozen=True)
class ClipLabel:
    """CLIP's verdict on one generated image; labels are class numbers.

    Attributes:
        probability: Of `clip_label`.
        true_label: What the image really shows, where that is known.
    """

    file_name: str
    seed_label: int
    clip_label: int
    probability: float
    true_label: int | None = None


class ClipLabels(Supervised):
    """Plain cross-entropy on real images and on generated ones under CLIP's labels.

    Args:
        images: All of them; generated ones under their seed labels.
        labels: CLIP's, of the generated images.
        run: Recipe, seed and class names are used.
    """

    def __init__(self, images: TrainingImages, labels: Sequence[int], run: Run):
        relabeled = [
            dataclasses.replace(record, label=label, class_name=run.class_names[label])
            for record, label in zip(images.generated, labels, strict=True)
        ]
        num_classes = run.classifier.num_classes
        records = [*images.real, *relabeled]
        super().__init__(records, run.recipe, run.seed, num_classes, images.mixing)
        self.figures = label_results(images.generated, labels)

    @classmethod
    def prepare(cls, images: TrainingImages, config: ClipLabelsConfig, run: Run) -> ClipLabels:
        """Label the generated images, unless that is done."""
        path = run.run_dir / "clip_labels.jsonl"
        if run.accelerator.is_main_process and not path.is_file():
            write_clip_labels(path, clip_labels(images.generated, config, run))
        run.accelerator.wait_for_everyone()
        return cls(images, [row.clip_label for row in read_clip_labels(path)], run)

    def results(self) -> Mapping[str, float]:
        return self.figures


def clip_labels(
    records: Sequence[ImageRecord], config: ClipLabelsConfig, run: Run
) -> list[ClipLabel]:
    """The most probable class of each image.

    Raises:
        InputError: The model cannot be loaded.
    """
    clip = ClipClassifier.load(
        config.clip_model,
        run.prompt_names,
        config.clip_templates,
        device=run.accelerator.device,
        revision=config.clip_revision,
    )
    probabilities = clip.predict(records, workers=run.recipe.num_workers)
    require(
        bool(probabilities.isfinite().all()),
        f"the CLIP model {config.clip_model} gives probabilities that are NaN; its weights are "
        "damaged, give another --clip_model",
    )
    found = probabilities.max(dim=1)
    return [
        ClipLabel(r.file_name, r.label, label, round(probability, 6), r.true_label)
        for r, label, probability in zip(
            records, found.indices.tolist(), found.values.tolist(), strict=True
        )
    ]


def write_clip_labels(path: Path, rows: Sequence[ClipLabel]) -> None:
    """JSON lines, written at once."""
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))


def read_clip_labels(path: Path) -> list[ClipLabel]:
    """Rows of `write_clip_labels`."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [ClipLabel(**json.loads(line)) for line in lines if line]
