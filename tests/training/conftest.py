"""A dataset of noise with expanded sets, on which a tiny network is trained in no time."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_expand

CLASSES = ("ant", "bee")
NUM_REAL, NUM_VARIANTS = 3, 4  # of each class; of each real image


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> Path:
    """`<folder>/noise`, a dataset, and its expanded sets `four` and `two`, of as many variants."""
    folder = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    rows = []
    for name in CLASSES:
        for i in range(NUM_REAL):
            source = f"train/{name}/{i}.png"
            places = [folder / "noise" / source, folder / "noise" / "test" / name / f"{i}.png"]
            names = [f"{name}/{i}_expand_{k}.png" for k in range(NUM_VARIANTS)]
            for path in [*places, *(folder / "four" / file for file in names)]:
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
            rows += [
                {"file_name": file, "class": name, "variant": k, "source": source}
                for k, file in enumerate(names)
            ]
    for name, count in (("four", NUM_VARIANTS), ("two", 2)):
        kept = [row for row in rows if row["variant"] < count]
        for row in kept:
            target = folder / name / row["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / "four" / row["file_name"]).read_bytes())
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (folder / name / "manifest.0-of-1.1.jsonl").write_text(text)
    return folder


@pytest.fixture
def train(sets, tmp_path):
    """Trains a tiny network on a set; returns its run folder."""

    def run(options: str, expanded: str = "four", steps: int = 4) -> Path:
        before = set(tmp_path.rglob("results.yaml"))
        line = f"-d {sets / 'noise'} --expanded_dir {sets / expanded} --checkpoint_dir {tmp_path}"
        line += " -a resnet10_tiny --image_size 16 --resize_size 16 --workers 0 --batch_size 4"
        line += f" --seeds 1 --budget steps --max_train_steps {steps} --lr 0.05 {options}"
        train_expand.main(shlex.split(line))
        (results,) = set(tmp_path.rglob("results.yaml")) - before
        return results.parent

    return run
