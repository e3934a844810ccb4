"""Fixtures of the tests of GIF-SD."""

from tests.helpers.clip_folders import clip_dir
