"""A measured set."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from expansion.data.datasets import load_dataset
from tests.helpers.measured_sets import (
    REAL,
    measure,
)
from tests.measures.conftest import write_set


@pytest.fixture
def made(make_folder) -> Path:
    """A dataset `<tmp>/zoo` and a set of it, `own_probability` falling in the order of the names.

    The best image of a class has 0.95, the second 0.90, ...
    """
    tree = {
        "train": {name: [f"{i}.png" for i in range(count)] for name, count in REAL.items()},
        "test": {name: ["a.png", "b.png"] for name in REAL},
    }
    zoo = make_folder("zoo", tree, size=8)
    records = load_dataset(str(zoo)).records("train")
    numbers = iter(range(1000))
    folder = zoo.parent / "data" / "zoo_expansion" / "set_3x"
    write_set(folder, records, 3, lambda r, k: Image.new("RGB", (8, 8), (next(numbers), 0, 9)))
    measure(folder)
    return folder
