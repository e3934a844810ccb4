"""Expanded sets of the digits on disk, with planted faults, and a classifier to measure them by."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_original
from expansion.data.datasets import load_dataset
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import Asked
from expansion.store.places import png_checksum
from tests.helpers.clip_folders import clip_dir

Draw = Callable[[ImageRecord, int], Image.Image]
STEPS = 80


@pytest.fixture(scope="session")
def measured_digits(tmp_path_factory) -> Path:
    """A working folder: data/digits, and checkpoint/ with a finished Original run on all of it."""
    folder = tmp_path_factory.mktemp("measured")
    data = folder / "data"
    load_dataset("digits", data)
    line = f"-d digits --data_dir {data} --checkpoint_dir {folder / 'checkpoint'} --seeds 1"
    train_original.main([*line.split(), "--budget", "steps", "--max_train_steps", str(STEPS)])
    return folder


@pytest.fixture(scope="session")
def digits(measured_digits):
    return load_dataset("digits", measured_digits / "data")


def write_set(folder: Path, sources: Sequence[ImageRecord], variants: int, draw: Draw) -> Path:
    """An expanded set as expand.py leaves it, of images that `draw` makes."""
    rows = []
    for record in sources:
        for number in range(variants):
            name = f"{record.class_name}/{Path(record.file_name).stem}_expand_{number}.png"
            content = io.BytesIO()
            draw(record, number).save(content, "PNG")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.getvalue())
            rows.append(
                {
                    "file_name": name,
                    "label": record.label,
                    "class": record.class_name,
                    "source": record.file_name,
                    "variant": number,
                    "png_crc32": png_checksum(content.getvalue()),
                }
            )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "manifest.0-of-1.1.jsonl").write_text(lines)
    (folder / "metadata.jsonl").write_text(lines)
    Asked(variants, [record.file_name for record in sources]).write(folder)
    return folder


def varied(record: ImageRecord, number: int) -> Image.Image:
    """The real image, turned, moved and with a little noise: another image of its class."""
    rng = np.random.default_rng([number, *record.file_name.encode()])
    image = record.load().rotate(float(rng.uniform(-14, 14)))
    image = image.transform(
        image.size,
        Image.Transform.AFFINE,
        (
            rng.uniform(0.9, 1.1),
            0,
            rng.uniform(-3, 3),
            0,
            rng.uniform(0.9, 1.1),
            rng.uniform(-3, 3),
        ),
        Image.Resampling.BILINEAR,
    )
    pixels = np.asarray(image, dtype=np.float64) + rng.normal(0, 6, (image.height, image.width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def noise(record: ImageRecord, number: int) -> Image.Image:
    rng = np.random.default_rng([number, *record.file_name.encode()])
    return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
