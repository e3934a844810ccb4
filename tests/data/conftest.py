"""Fixtures of the folder's tests."""

from tests.helpers.prompt_files import arguments, digit_prompts
