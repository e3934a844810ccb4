"""Fixtures of the room's tests."""

from tests.helpers.run_folders import table, two_arms, write_arm, write_predicted, write_run  # noqa: F401
