"""Expanded sets of classes with odd names, and of plain ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import expand
from tests.conftest import TINY_MODEL
from tests.helpers.exported_sets import NAMES, QUICK, make_set
from tests.helpers.stand_ins import aircraft


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    aircraft(folder / "fgvc_aircraft", NAMES)
    return folder


@pytest.fixture(scope="module")
def odd_set(data_dir, tmp_path_factory) -> Path:
    """An expanded set of classes with odd names, whose images lose their lowest rows; read only."""
    return make_set(data_dir, tmp_path_factory.mktemp("sets") / "odd")


@pytest.fixture
def plain(tmp_path, make_folder) -> Path:
    """A set of its own dataset that is a folder, `<tmp>/photos`; one real image of each class."""
    tree = {split: {"cat": ["1.png"], "dog": ["1.png"]} for split in ("train", "test")}
    make_folder("photos", tree)
    line = f"-d {tmp_path / 'photos'} --method img2img --output_dir {tmp_path / 'set'}"
    line += f" --pretrained_model_name_or_path {TINY_MODEL}"
    assert expand.main([*line.split(), *QUICK]) == 0
    return tmp_path / "set"
