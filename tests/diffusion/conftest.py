"""Tiny models of few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL
from tests.helpers.tiny_checkpoints import changed_copy, tiny_lcm

TRAILING = {"timestep_spacing": "trailing", "_class_name": "EulerDiscreteScheduler"}


@pytest.fixture(scope="session")
def lcm_dir(tmp_path_factory) -> Path:
    return tiny_lcm(tmp_path_factory.mktemp("lcm"))


@pytest.fixture(scope="module")
def lcm(lcm_dir):
    return load_pipeline(str(lcm_dir))


@pytest.fixture(scope="session")
def turbo_dir(tmp_path_factory) -> Path:
    return changed_copy(TINY_MODEL, tmp_path_factory.mktemp("t") / "turbo", scheduler=TRAILING)
