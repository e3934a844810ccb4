"""Fixtures of the folder's tests."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from expansion.data.datasets import load_dataset
from tests.helpers.expanded_sets import write_set
from tests.helpers.prompt_files import arguments, digit_prompts


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """A folder dataset: three classes that differ in colour, 6 training and 3 test images each."""
    root = tmp_path_factory.mktemp("sets") / "colours"
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for i, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for j in range(count):
                pixels = draw.integers(0, 90, (36, 36, 3), dtype=np.uint8)
                pixels[..., i] += 140
                Image.fromarray(pixels).save(root / split / name / f"{j}.png")
    return root


@pytest.fixture(scope="module")
def expansion_dir(small_set, tmp_path_factory):
    """Two variants of each training image; those of cat/0 are bees, whatever the manifest says."""
    draw = np.random.default_rng(1)
    variants = []
    for record in load_dataset(str(small_set)).records("train"):
        for k in range(2):
            shown = 1 if record.file_name == "train/cat/0.png" else record.label
            pixels = draw.integers(0, 90, (36, 36, 3), dtype=np.uint8)
            pixels[..., shown] += 140
            name = f"{record.class_name}/{record.path.stem}_expand_{k}.png"
            variants.append((record, k, name, pixels))
    return write_set(tmp_path_factory.mktemp("expansions") / "set", variants)
