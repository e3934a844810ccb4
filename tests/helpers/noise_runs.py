"""Images of noise with generated ones, and runs on them that may be stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_expand
from expansion.data.datasets import load_dataset
from expansion.images.records import ImageRecord
from expansion.training.objectives import TrainingImages
from expansion.training.trainer import Trainer
from tests.helpers.expanded_sets import write_set

CLASSES = ("ant", "bee", "sea_cat")


def noise_image(path: Path, number: int, size: tuple[int, int] = (36, 36)) -> None:
    pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Three classes of noise, each 3 training and 2 test images; a variant of all but the cats."""
    root = tmp_path_factory.mktemp("data") / "noise"
    for label, name in enumerate(CLASSES):
        for i in range(5):
            split = "train" if i < 3 else "test"
            noise_image(root / split / name / f"{i}.png", 10 * label + i)
    found = load_dataset(str(root)).records("train")[:6]
    write_set(root.parent / "set", (_variant(k, record) for k, record in enumerate(found)))
    return root


def _variant(k: int, record: ImageRecord) -> tuple[ImageRecord, int, str, np.ndarray]:
    rng = np.random.default_rng(100 + k)
    colour = rng.integers(10, 255, 3)
    pixels = rng.integers(0, colour, (32, 32, 3), dtype=np.uint8)
    return record, 0, f"{record.class_name}/{k}.png", pixels


def records(dataset: Path) -> TrainingImages:
    real = load_dataset(str(dataset)).records("train")
    folder = dataset.parent / "set"
    rows = [(f"{CLASSES[k // 3]}/{k}.png", k // 3) for k in range(6)]
    generated = [ImageRecord(folder / n, n, label, CLASSES[label], "s") for n, label in rows]
    return TrainingImages(real, generated)


def train(dataset: Path, checkpoints: Path, *options: object) -> Path:
    """Runs train_expand.py; returns the run's folder."""
    line = f"-d {dataset} --expanded_dir {dataset.parent / 'set'} --checkpoint_dir {checkpoints}"
    line += " --workers 0 --seeds 1 -a resnet10_tiny --lr 0.05 --image_size 32 --resize_size 36"
    line += " --batch_size 4 --budget steps --max_train_steps 8 --eval_steps 2"
    train_expand.main([*line.split(), *map(str, options)])
    (options_file,) = checkpoints.glob("*/*/seed1/options.yaml")
    return options_file.parent


def checkpoint(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoint.pth.tar", weights_only=True)


def interrupt(monkeypatch, after: int) -> None:
    """Ctrl-C after this many steps, of the warm-up and the rest together."""
    step, done = Trainer._step, []

    def interrupted(self, *arguments):
        done.append(1)
        if len(done) > after:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", interrupted)
