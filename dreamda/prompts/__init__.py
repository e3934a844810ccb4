"""Prompt files: from word lists, presets, and two kinds of language models."""
