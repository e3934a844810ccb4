"""Fixtures of the folder's tests."""

from tests.helpers.run_folders import table, two_arms, write_arm, write_predicted, write_run
