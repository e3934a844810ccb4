"""Fixtures of the folder's tests."""

from tests.helpers.noise_runs import dataset
