"""Textual inversion (arXiv 2208.01618): one new word of the text encoder for each class."""
