"""Diffusion Inversion (arXiv 2305.15316): an embedding per real image replaces the prompt."""
