"""Fixtures of the room's tests."""

from tests.helpers.run_folders import write_arm, write_run  # noqa: F401
