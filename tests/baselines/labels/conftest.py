"""Fixtures of the folder's tests."""

from tests.helpers.clip_folders import clip_dir
from tests.helpers.noise_runs import dataset
